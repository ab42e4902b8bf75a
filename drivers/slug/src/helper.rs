//! A process of ours, seen from the front: started with nothing, heard, and gone when dropped.

use std::{
    ffi::CString,
    fs::File,
    io, mem,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixStream as StdStream},
    },
    path::Path,
};

use hsup_driver_kit::spawn::{Spawn, Ties};
use nix::{
    errno::Errno,
    sys::{
        signal::Signal,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, unix::AsyncFd},
    net::UnixStream,
    runtime::Handle,
};

use crate::{
    error::SlugError,
    progress::Progress,
    wire::{Event, Job},
};

/// The argument that makes a driver's binary one of our processes.
pub(crate) const ARGUMENT: &str = "slug-helper";
/// Longer than anything that a process of ours has to say.
const LONGEST_EVENT: u64 = 64 * 1024;
/// Where certificates are, for hosts that keep them elsewhere: all that a process is told of
/// our environment.
const CERTIFICATES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// What is executed to be a process of ours.
#[derive(Clone, Debug)]
pub struct Program(CString);

impl Default for Program {
    /// The binary that runs, also where another has taken its name meanwhile. Its `main` has to
    /// call [`crate::role`].
    fn default() -> Self {
        Self(c"/proc/self/exe".to_owned())
    }
}

impl Program {
    /// Another binary whose `main` calls [`crate::role`]; `None` for a path with a NUL.
    pub fn at(path: &Path) -> Option<Self> {
        CString::new(path.as_os_str().as_bytes()).ok().map(Self)
    }
}

/// A running process of ours. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Helper {
    task: &'static str,
    control: BufReader<UnixStream>,
    /// What it has said of its next event.
    line: Vec<u8>,
    child: Child,
}

impl Helper {
    /// Starts `program` for `job`, with `input` and `output` as its descriptors 0 and 1.
    pub(crate) async fn start(
        program: &Program,
        task: &'static str,
        job: &Job,
        input: Option<BorrowedFd<'_>>,
        output: Option<BorrowedFd<'_>>,
    ) -> Result<Self, SlugError> {
        Self::try_start(program, task, job, input, output)
            .await
            .map_err(|error| SlugError::helper(task, &error))
    }

    async fn try_start(
        program: &Program,
        task: &'static str,
        job: &Job,
        input: Option<BorrowedFd<'_>>,
        output: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = start(program, task, input, output, &theirs)?;
        drop(theirs);
        let mut control = BufReader::new(UnixStream::from_std(ours)?);
        let mut line = serde_json::to_vec(job)?;
        line.push(b'\n');
        control.get_mut().write_all(&line).await?;
        Ok(Self {
            task,
            control,
            line: Vec::new(),
            child,
        })
    }

    /// The next thing that it says. May be cancelled: what was read is kept.
    pub(crate) async fn event(&mut self) -> Result<Event, SlugError> {
        let mut limited = (&mut self.control).take(LONGEST_EVENT);
        let read = limited.read_until(b'\n', &mut self.line).await;
        let line = mem::take(&mut self.line);
        match read {
            Ok(1..) => match serde_json::from_slice(&line) {
                Ok(Event::Failed(error)) => Err(error),
                Ok(event) => Ok(event),
                Err(error) => Err(failed(self.task, format!("it speaks nonsense: {error}"))),
            },
            Ok(0) => Err(failed(self.task, self.child.end().await)),
            Err(error) => Err(failed(self.task, error.to_string())),
        }
    }

    /// Its last word.
    pub(crate) async fn answer(&mut self, progress: &dyn Progress) -> Result<String, SlugError> {
        loop {
            match self.event().await? {
                Event::Done(answer) => return Ok(answer),
                Event::Note(text) => progress.note(&text),
                Event::Trying | Event::Total(_) | Event::Failed(_) => {}
            }
        }
    }

    /// Ends it and waits until it has: it then writes nowhere any more.
    pub(crate) async fn end(mut self) {
        self.child.kill();
        self.child.end().await;
    }
}

fn failed(task: &str, cause: String) -> SlugError {
    SlugError::Helper {
        task: task.to_owned(),
        cause,
    }
}

fn start(
    program: &Program,
    task: &'static str,
    input: Option<BorrowedFd<'_>>,
    output: Option<BorrowedFd<'_>>,
    control: &StdStream,
) -> io::Result<Child> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // What a person sees of it in `ps`.
    let argv = ["hsup-slug", ARGUMENT, task].map(|word| CString::new(word).unwrap_or_default());
    let env: Vec<CString> = CERTIFICATES
        .iter()
        .filter_map(|name| {
            let value = std::env::var(name).ok()?;
            CString::new(format!("{name}={value}")).ok()
        })
        .collect();
    let spawned = Spawn {
        program: &program.0,
        argv: &argv,
        env: &env,
        cwd: Some(c"/"),
        fds: &[
            input.unwrap_or(null.as_fd()),
            output.unwrap_or(null.as_fd()),
            null.as_fd(),
            control.as_fd(),
        ],
        // The thread that we are on may end before the driver does; the socket does not.
        ties: Ties::None,
        mark: None,
        open_files: None,
        cgroup: None,
    }
    .spawn()?;
    #[expect(unsafe_code, reason = "nix has no pidfd_open")]
    // SAFETY: it takes numbers and returns a descriptor that is ours. The process is our child
    // and not reaped, so the pid is its own.
    let pidfd = unsafe {
        let fd = libc::syscall(
            libc::SYS_pidfd_open,
            spawned.pid.as_raw(),
            libc::PIDFD_NONBLOCK,
        );
        let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
        OwnedFd::from_raw_fd(fd)
    };
    #[expect(unsafe_code, reason = "the runtime wants to be promised this")]
    // SAFETY: an OwnedFd is the same descriptor for as long as it is there, and closes it.
    let pidfd = unsafe { AsyncFd::register(pidfd)? };
    Ok(Child(Some(pidfd)))
}

/// The process itself; `None` once it is reaped.
#[derive(Debug)]
struct Child(Option<AsyncFd<OwnedFd>>);

impl Child {
    fn kill(&self) {
        let Some(pidfd) = &self.0 else { return };
        #[expect(unsafe_code, reason = "nix has no pidfd_send_signal")]
        // SAFETY: a descriptor that we hold, and no pointers. One that has ended is fine.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd.as_raw_fd(),
                Signal::SIGKILL as i32,
                0,
                0,
            );
        }
    }

    /// Waits for its end, and tells how that was.
    async fn end(&mut self) -> String {
        let Some(pidfd) = &self.0 else {
            return "it has ended".to_owned();
        };
        let readable = pidfd.readable().await.map(drop);
        let status = readable.map_err(|_| Errno::EIO).and_then(|()| reap(pidfd));
        self.0 = None;
        match status {
            Ok(WaitStatus::Exited(_, code)) => format!("it ended with status {code}"),
            Ok(WaitStatus::Signaled(_, Signal::SIGXCPU, _)) => {
                "it used too much processor time".to_owned()
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("it was killed by {signal}"),
            Ok(_) | Err(_) => "it has ended".to_owned(),
        }
    }
}

fn reap(pidfd: &AsyncFd<OwnedFd>) -> nix::Result<WaitStatus> {
    waitid(
        Id::PIDFd(pidfd.as_fd()),
        WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
    )
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        let Some(pidfd) = self.0.take() else { return };
        // It may hang in the kernel (a FUSE mount that is not served): nobody waits for that
        // here, but somebody reaps it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                Self(Some(pidfd)).end().await;
            });
        } else {
            let _ = reap(&pidfd);
        }
    }
}
