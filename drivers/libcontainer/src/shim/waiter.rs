//! The end of a shim: it becomes `hsup-wait`, which waits for the dyno in its place.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::executor::{keep_open, pointers};
use crate::{NAME, sweep};

/// A dyno that was started, and what is needed to wait for it.
pub(super) struct Started {
    pub(super) init: i32,
    pub(super) status: OwnedFd,
    pub(super) life: OwnedFd,
    /// Of its standard output and error, where they are not a terminal.
    pub(super) outputs: Vec<OwnedFd>,
    pub(super) oom: Option<fs::File>,
    pub(super) program: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
    /// Held to the end of the sweep, or of the dyno: to be inherited.
    pub(super) held: Vec<OwnedFd>,
}

impl Started {
    /// Becomes `hsup-wait`. Returns only if that fails.
    #[expect(unsafe_code, reason = "a program is executed by its descriptor")]
    pub(super) fn wait(self, dir: &Path) -> io::Error {
        let program = match fs::File::open("/proc/self/exe") {
            Ok(program) => program,
            Err(error) => return error,
        };
        let folder = match fs::File::open(dir) {
            Ok(folder) => folder,
            Err(error) => return error,
        };
        let mut words = vec![
            "hsup-wait".to_owned(),
            self.init.to_string(),
            self.status.as_raw_fd().to_string(),
            self.life.as_raw_fd().to_string(),
            folder.as_raw_fd().to_string(),
        ];
        let outputs = self.outputs.iter().map(AsRawFd::as_raw_fd);
        words.extend(outputs.chain([-1, -1]).take(2).map(|fd| fd.to_string()));
        words.extend(self.oom.iter().map(|file| file.as_raw_fd().to_string()));
        words.push("--".to_owned());
        words.push(program.as_raw_fd().to_string());
        words.push(NAME.to_owned());
        words.push(sweep::ROLE.to_owned());
        let mut words: Vec<_> = words
            .into_iter()
            .filter_map(|word| CString::new(word).ok())
            .collect();
        words.extend(CString::new(dir.as_os_str().as_bytes()));
        // Everything is to be inherited, by that program alone.
        let own = [
            self.status.as_raw_fd(),
            self.life.as_raw_fd(),
            folder.as_raw_fd(),
            program.as_raw_fd(),
        ];
        let held = self
            .held
            .iter()
            .chain(&self.outputs)
            .chain(&self.terminal)
            .map(AsRawFd::as_raw_fd);
        let oom = self.oom.iter().map(AsRawFd::as_raw_fd);
        for fd in own.into_iter().chain(held).chain(oom) {
            if let Err(error) = keep_open(fd) {
                return error;
            }
        }
        let argv = pointers(&words);
        // SAFETY: the lists are null-terminated, and of strings that outlive the call.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program.as_raw_fd(),
                c"".as_ptr(),
                argv.as_ptr(),
                [std::ptr::null::<libc::c_char>()].as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        io::Error::last_os_error()
    }
}
