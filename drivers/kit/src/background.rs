//! Spawning a driver process in a session of its own.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use nix::unistd::Pid;

/// A process to spawn.
pub(crate) struct Background<'a> {
    pub(crate) program: &'a Path,
    /// `argv[0]` first.
    pub(crate) argv: &'a [OsString],
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Its standard output and error.
    pub(crate) output: BorrowedFd<'a>,
    /// Its descriptor 3.
    pub(crate) fd3: Option<BorrowedFd<'a>>,
    /// Its open-file limits, where they differ from ours.
    pub(crate) open_files: Option<(u64, u64)>,
}

impl Background<'_> {
    #[expect(unsafe_code, reason = "what a child does before exec is unsafe to say")]
    #[expect(clippy::disallowed_methods, reason = "this is the place that spawns")]
    pub(crate) fn spawn(self) -> io::Result<Pid> {
        let (argv0, arguments) = self.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(self.program);
        command
            .arg0(argv0)
            .args(arguments)
            .env_clear()
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(self.output.try_clone_to_owned()?)
            .stderr(self.output.try_clone_to_owned()?);
        let fd3 = self.fd3.map(|fd| fd.as_raw_fd());
        let open_files = self.open_files;
        // SAFETY: only async-signal-safe calls, on descriptors that the parent keeps open.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                if let Some((soft, hard)) = open_files {
                    let limit = libc::rlimit {
                        rlim_cur: soft,
                        rlim_max: hard,
                    };
                    libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
                }
                match fd3 {
                    Some(3) => {
                        libc::fcntl(3, libc::F_SETFD, 0);
                    }
                    Some(fd) => {
                        libc::dup2(fd, 3);
                    }
                    None => {}
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        Ok(Pid::from_raw(child.id().cast_signed()))
    }
}
