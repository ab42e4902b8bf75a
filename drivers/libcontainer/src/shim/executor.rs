//! What libcontainer lets the container's first process do last: execute `hsup-init`.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs,
    io::{self, Write as _},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
};

use libcontainer::{
    oci_spec::runtime::Spec,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};

use super::{ShimError, preparing};
use crate::order::Order;

/// Executes `hsup-init`, in the container, by the descriptor that the shim had of it: nothing of
/// it is in the container's file system.
#[derive(Clone)]
pub(super) struct ExecInit {
    program: RawFd,
    argv: Vec<CString>,
    env: Vec<CString>,
    filters: Vec<Vec<u8>>,
    inherited: Vec<RawFd>,
}

pub(super) type TerminalPair = ((u16, u16), (OwnedFd, OwnedFd));

impl ExecInit {
    pub(super) fn new(
        order: &Order,
        program: &OwnedFd,
        seccomp: &OwnedFd,
        status: &OwnedFd,
        terminal: Option<&TerminalPair>,
    ) -> Result<Self, ShimError> {
        let mut inherited = vec![status.as_raw_fd()];
        let (tty, (rows, columns)) = match terminal {
            None => (-1, (0, 0)),
            Some((size, (_, theirs))) => {
                inherited.push(theirs.as_raw_fd());
                (theirs.as_raw_fd(), *size)
            }
        };
        let mut argv = vec![
            "hsup-init".to_owned(),
            status.as_raw_fd().to_string(),
            tty.to_string(),
            rows.to_string(),
            columns.to_string(),
            "--".to_owned(),
        ];
        argv.extend(order.argv.iter().cloned());
        let env = order
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let strings = |list: Vec<String>| {
            list.into_iter()
                .map(CString::new)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
        };
        Ok(Self {
            program: program.as_raw_fd(),
            argv: strings(argv).map_err(preparing("make the dyno's arguments"))?,
            env: strings(env.collect()).map_err(preparing("make the dyno's environment"))?,
            filters: read_filters(seccomp).map_err(preparing("read the seccomp filters"))?,
            inherited,
        })
    }

    #[expect(unsafe_code, reason = "what is executed, and how, is what this is for")]
    fn run(&self) -> io::Error {
        for fd in &self.inherited {
            if let Err(error) = keep_open(*fd) {
                return error;
            }
        }
        // SAFETY: no thread but this, which is about to become another program. Rust's start had
        // SIGPIPE ignored, and that would be the dyno's too.
        unsafe {
            for signal in 1..=libc::SIGRTMAX() {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let (argv, env) = (pointers(&self.argv), pointers(&self.env));
        for filter in &self.filters {
            let program = libc::sock_fprog {
                len: u16::try_from(filter.len() / 8).unwrap_or(u16::MAX),
                filter: filter.as_ptr().cast_mut().cast(),
            };
            // SAFETY: the kernel copies as many instructions as there are.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_seccomp,
                    libc::SECCOMP_SET_MODE_FILTER,
                    0,
                    &raw const program,
                )
            };
            if result != 0 {
                return io::Error::last_os_error();
            }
        }
        // SAFETY: the lists are null-terminated, and of strings that outlive the call.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program,
                c"".as_ptr(),
                argv.as_ptr(),
                env.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        io::Error::last_os_error()
    }
}

impl Executor for ExecInit {
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // It is handed to execveat.
        Ok(())
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let error = self.run();
        Err(ExecutorError::Other(format!(
            "failed to execute hsup-init: {error}"
        )))
    }
}

/// Writes the filters as the shims read them.
pub(crate) fn write_filters(file: &mut fs::File, filters: &[Vec<u8>]) -> io::Result<()> {
    for filter in filters {
        let len = u32::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        file.write_all(&len.to_ne_bytes())?;
        file.write_all(filter)?;
    }
    Ok(())
}

/// Reads them without moving the descriptor, which others share.
fn read_filters(file: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::from(file.try_clone()?);
    let mut filters = Vec::new();
    let mut at = 0;
    let end = file.metadata()?.len();
    while at < end {
        let mut len = [0; 4];
        file.read_exact_at(&mut len, at)?;
        let mut filter = vec![0; u32::from_ne_bytes(len) as usize];
        file.read_exact_at(&mut filter, at + 4)?;
        at += 4 + filter.len() as u64;
        filters.push(filter);
    }
    Ok(filters)
}

pub(super) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = strings.iter().map(|string| CStr::as_ptr(string));
    pointers.chain([std::ptr::null()]).collect()
}

#[expect(unsafe_code, reason = "a descriptor is known by its number")]
pub(super) fn keep_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: it changes a flag of a descriptor, and closes nothing.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
