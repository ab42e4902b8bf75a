//! A dyno as the driver makes one, with no more to it than what concerns its two processes: a
//! root of its own, a pid namespace, a uid without privileges; outside, the one that waits.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::{PermissionsExt as _, symlink},
            net::UnixStream,
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl},
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, setrlimit},
        signal::{Signal, kill},
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
        stat::Mode,
    },
    unistd::{
        ForkResult, Gid, Pid, Uid, chdir, chroot, dup2_stderr, execveat, fork, mkfifo, pipe2,
        setgroups, setresgid, setresuid,
    },
};
use tempfile::TempDir;

/// What no test may take.
const DEADLINE_MS: u16 = 30_000;
pub(crate) const UID: u32 = 54_321;
const PROGRAM: &str = env!("CARGO_BIN_EXE_hsup-init");
/// What hangs on to the dyno's directory until the test lets go, and says who it is.
const SWEEP: &str = "echo $$ >\"$0/swept\"; read -r _ <\"$0/hold\"; exit 7";

/// What a test wants a dyno to be like.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(&'static str, &'static str)>,
    /// Files below the dyno's root, with their modes.
    pub(crate) files: Vec<(&'static str, &'static str, u32)>,
    /// Rows and columns of a terminal.
    pub(crate) terminal: Option<(u16, u16)>,
    /// There is no `/dev/ptmx`.
    pub(crate) no_ptmx: bool,
    /// The stack's shell is a plain `sh`.
    pub(crate) no_bash: bool,
    /// What the files say that count how often the dyno was out of memory.
    pub(crate) oom: Vec<&'static str>,
    /// How much the file system of the dyno's directory holds, if that is little.
    pub(crate) room: Option<usize>,
    /// That it is full only when the test says so.
    pub(crate) room_is_taken_later: bool,
    /// How many processes the dyno's uid may have.
    pub(crate) processes: Option<u64>,
    /// Who the dyno is; of another uid if its processes are counted.
    pub(crate) uid: u32,
}

impl Plan {
    pub(crate) fn new(command: &[&str]) -> Self {
        Self {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            environment: vec![("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/app")],
            files: Vec::new(),
            terminal: None,
            no_ptmx: false,
            no_bash: false,
            oom: Vec::new(),
            room: None,
            room_is_taken_later: false,
            processes: None,
            uid: UID,
        }
    }

    pub(crate) fn sh(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub(crate) fn file(mut self, path: &'static str, text: &'static str, mode: u32) -> Self {
        self.files.push((path, text, mode));
        self
    }

    pub(crate) fn start(self) -> Dyno {
        Dyno::start(self).expect("a dyno")
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> End {
        self.start().end()
    }
}

/// How a dyno's life went.
#[derive(Debug)]
pub(crate) struct End {
    /// What `exit.json` says, without the time.
    pub(crate) exit: Option<String>,
    pub(crate) output: String,
    /// How the sweep ended, which is of the process that waited.
    pub(crate) sweep: ExitStatus,
}

impl End {
    /// Panics unless this is all there is to say.
    #[track_caller]
    pub(crate) fn is(&self, exit: &str, output: &str) {
        let exit = format!("{{{exit},\"oom_killed\":false");
        assert_eq!(self.exit.as_ref(), Some(&exit), "{}", self.output);
        assert_eq!(self.output, output);
    }
}

/// A dyno that runs; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Dyno {
    /// The process that waits and later sweeps.
    waiter: Child,
    output: ChildStdout,
    /// The terminal's end of who watches the dyno.
    pub(crate) master: Option<File>,
    life: OwnedFd,
    root: TempDir,
}

impl Dyno {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is how a driver starts a dyno"
    )]
    #[expect(
        unsafe_code,
        reason = "what is between fork and exec is the matter here"
    )]
    fn start(plan: Plan) -> io::Result<Self> {
        let root = tempfile::tempdir()?;
        lay_out(root.path(), &plan)?;
        let sockets = plan.terminal.map(|_| UnixStream::pair()).transpose()?;
        let (ours, theirs) = sockets.unzip();
        let (life, held) = pipe2(OFlag::O_CLOEXEC)?;
        let parts = Parts::new(root.path(), plan, held, theirs)?;
        let mut command = Command::new(PROGRAM);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: the C library's fork leaves its allocator usable in the child, and nothing
        // else that this needs could be held by another thread.
        unsafe {
            command.pre_exec(move || Err(parts.become_dyno()));
        }
        let mut waiter = command.spawn()?;
        // The descriptors in it are the dyno's alone.
        drop(command);
        let output = waiter.stdout.take().expect("it is piped");
        let master = ours.as_ref().map(receive).transpose()?;
        Ok(Self {
            waiter,
            output,
            master,
            life,
            root,
        })
    }

    pub(crate) fn waiter(&self) -> Pid {
        Pid::from_raw(self.waiter.id().try_into().expect("a pid"))
    }

    /// Waits until the one who waits does nothing else any more.
    pub(crate) fn await_waiting(&self) {
        let comm = format!("/proc/{}/comm", self.waiter());
        for _ in 0..u32::from(DEADLINE_MS) / 10 {
            if fs::read_to_string(&comm).is_ok_and(|name| name == "hsup-wait\n") {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("waited too long for hsup-wait");
    }

    /// PID 1, as it is known outside.
    pub(crate) fn init(&self) -> Pid {
        let waiter = self.waiter();
        let children = fs::read_to_string(format!("/proc/{waiter}/task/{waiter}/children"));
        let children = children.expect("who waits is there");
        Pid::from_raw(children.trim().parse().expect("PID 1 alone"))
    }

    /// Sends a signal as the driver does.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.init(), signal).expect("PID 1 is there");
    }

    /// Reads what the dyno writes, up to the end of a text.
    pub(crate) fn read_until(&mut self, wanted: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(wanted.as_bytes()) {
            let source = self
                .master
                .as_ref()
                .map_or(self.output.as_fd(), AsFd::as_fd);
            let text = String::from_utf8_lossy(&read);
            await_event(
                source,
                PollFlags::POLLIN,
                &format!("`{wanted}` after `{text}`"),
            );
            let mut byte = [0];
            let length = match &mut self.master {
                Some(master) => master.read(&mut byte),
                None => self.output.read(&mut byte),
            };
            let text = String::from_utf8_lossy(&read);
            assert_eq!(length.ok(), Some(1), "the output ended: {text}");
            read.push(byte[0]);
        }
        String::from_utf8(read).expect("text")
    }

    /// The dyno's directory, as the one who waits sees it.
    fn directory(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.waiter()));
        let path = self.root.path().strip_prefix("/").expect("it is absolute");
        root.join(path).join("dyno")
    }

    /// Leaves no room in the dyno's directory.
    pub(crate) fn fill_up(&self) {
        fill_up(&self.directory()).expect("it can be filled");
    }

    /// Waits until everybody outside knows that the dyno has ended.
    pub(crate) fn await_end(&self) {
        await_event(self.life.as_fd(), PollFlags::POLLHUP, "the end of the dyno");
    }

    /// Follows it to its end.
    pub(crate) fn end(mut self) -> End {
        self.await_end();
        // Open for both, so that no opening waits.
        let fifo = |name: &str| {
            let path = self.root.path().join(name);
            let opened = File::options().read(true).write(true).open(path);
            opened.expect("a FIFO of the layout")
        };
        let mut swept = fifo("swept");
        await_event(swept.as_fd(), PollFlags::POLLIN, "the sweep");
        let mut pid = [0; 16];
        let length = swept.read(&mut pid).expect("what the sweep says");
        let said = String::from_utf8_lossy(&pid[..length]);
        assert_eq!(said.trim(), self.waiter().to_string(), "who swept");
        // It is still there, in the place in which the one who waited was.
        let exit = fs::read_to_string(self.directory().join("exit.json")).ok();
        let mut hold = fifo("hold");
        hold.write_all(b"\n").expect("there is room in a FIFO");
        let mut output = Vec::new();
        self.output.read_to_end(&mut output).expect("the output");
        let sweep = self.waiter.wait().expect("who waited");
        End {
            exit: exit.map(|exit| {
                let (said, time) = exit.split_once(",\"exited_at_unix_ms\":").expect("a time");
                let time = time.strip_suffix("}\n").expect("nothing after the time");
                // In this century.
                assert_eq!(time.len(), 13, "{time}");
                said.to_owned()
            }),
            output: String::from_utf8(output).expect("text"),
            sweep,
        }
    }
}

impl Drop for Dyno {
    fn drop(&mut self) {
        let waiter = self.waiter();
        if let Ok(children) = fs::read_to_string(format!("/proc/{waiter}/task/{waiter}/children"))
            && let Ok(init) = children.trim().parse()
        {
            let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
        }
        self.waiter.kill().ok();
        self.waiter.wait().ok();
    }
}

/// Leaves no room for anything.
fn fill_up(directory: &Path) -> io::Result<()> {
    let mut filler = File::create(directory.join("filler"))?;
    while filler.write_all(&[0; 4096]).is_ok() {}
    Ok(())
}

fn await_event(source: BorrowedFd<'_>, event: PollFlags, what: &str) {
    let mut sources = [PollFd::new(source, event)];
    let ready = poll(&mut sources, PollTimeout::from(DEADLINE_MS)).expect("poll");
    assert_eq!(ready, 1, "waited too long for {what}");
}

/// Takes the terminal's master.
#[expect(unsafe_code, reason = "a descriptor that comes as a number")]
fn receive(socket: &UnixStream) -> io::Result<File> {
    await_event(socket.as_fd(), PollFlags::POLLIN, "the terminal");
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags)?;
    let received = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(numbers) => numbers.first().copied(),
        _ => None,
    });
    let number = received.ok_or_else(|| io::Error::other("no terminal came"))?;
    // SAFETY: the kernel has just made it for this process.
    Ok(unsafe { File::from_raw_fd(number) })
}

/// Makes the dyno's root, as far as files can: what is mounted is the dyno's own affair.
fn lay_out(root: &Path, plan: &Plan) -> io::Result<()> {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    for directory in [
        "usr",
        "proc",
        "dev/pts",
        "etc/profile.d",
        "app/.profile.d",
        "tmp",
        "dyno",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for link in ["bin", "lib", "lib64", "sbin"] {
        symlink(Path::new("usr").join(link), root.join(link))?;
    }
    for node in ["dev/null", "dev/tty", "dev/zero"] {
        File::create(root.join(node))?;
    }
    if !plan.no_ptmx {
        symlink("pts/ptmx", root.join("dev/ptmx"))?;
    }
    for (path, text, mode) in &plan.files {
        install(&root.join(path), text, *mode)?;
    }
    for (index, text) in plan.oom.iter().enumerate() {
        let mut file = File::create(root.join(format!("oom{index}")))?;
        file.write_all(text.as_bytes())?;
    }
    for fifo in ["hold", "swept"] {
        mkfifo(&root.join(fifo), Mode::S_IRWXU)?;
    }
    Ok(())
}

/// Makes a file that the dyno may execute. A process of its own writes it: what this one has open
/// for writing, each that another test forks has too until its `exec`, and nobody could execute it
/// meanwhile.
#[expect(clippy::disallowed_methods, reason = "neither a dyno nor a driver")]
fn install(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut install = Command::new("install");
    install.arg(format!("-m{mode:o}")).arg("/dev/stdin");
    let mut child = install.arg(path).stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(text.as_bytes())?;
    drop(stdin);
    assert!(child.wait()?.success(), "{} was not made", path.display());
    Ok(())
}

/// What both processes need from before the fork.
#[derive(Debug)]
struct Parts {
    root: PathBuf,
    plan: Plan,
    program: File,
    sweep: File,
    directory: PathBuf,
    status: (OwnedFd, OwnedFd),
    life: OwnedFd,
    socket: Option<UnixStream>,
    oom: Vec<File>,
}

impl Parts {
    fn new(root: &Path, plan: Plan, life: OwnedFd, socket: Option<UnixStream>) -> io::Result<Self> {
        let oom = (0..plan.oom.len()).map(|index| File::open(root.join(format!("oom{index}"))));
        Ok(Self {
            root: root.to_owned(),
            program: File::open(PROGRAM)?,
            sweep: File::open("/bin/sh")?,
            directory: root.join("dyno"),
            status: pipe2(OFlag::O_CLOEXEC)?,
            life,
            socket,
            oom: oom.collect::<io::Result<_>>()?,
            plan,
        })
    }

    /// In the child, which becomes the one that waits. Comes back only if it could not.
    fn become_dyno(&self) -> io::Error {
        self.try_to_become_dyno()
            .err()
            .unwrap_or_else(|| io::Error::other("came back"))
    }

    #[expect(unsafe_code, reason = "a fork")]
    fn try_to_become_dyno(&self) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
        let nothing = None::<&str>;
        mount(
            nothing,
            "/",
            nothing,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            nothing,
        )?;
        if let Some(room) = self.plan.room {
            let room = format!("size={room}");
            let flags = MsFlags::empty();
            mount(
                Some("dyno"),
                &self.directory,
                Some("tmpfs"),
                flags,
                Some(room.as_str()),
            )?;
            if !self.plan.room_is_taken_later {
                fill_up(&self.directory)?;
            }
        }
        // Its messages are looked at too.
        dup2_stderr(io::stdout())?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Child => self.become_init(),
            ForkResult::Parent { child } => self.become_waiter(child),
        }
    }

    fn become_init(&self) -> io::Result<()> {
        let at = |path: &str| self.root.join(path);
        let nothing = None::<&str>;
        let bind =
            |from: &str, to: &str| mount(Some(from), &at(to), nothing, MsFlags::MS_BIND, nothing);
        bind("/usr", "usr")?;
        bind("/dev/null", "dev/null")?;
        bind("/dev/tty", "dev/tty")?;
        bind("/dev/zero", "dev/zero")?;
        if self.plan.no_bash {
            bind("/dev/null", "usr/bin/bash")?;
        }
        let none = MsFlags::empty();
        mount(Some("proc"), &at("proc"), Some("proc"), none, nothing)?;
        let options = Some("newinstance,ptmxmode=0666,mode=0620");
        mount(
            Some("devpts"),
            &at("dev/pts"),
            Some("devpts"),
            none,
            options,
        )?;
        chroot(&self.root)?;
        chdir("/app")?;
        if let Some(processes) = self.plan.processes {
            setrlimit(Resource::RLIMIT_NPROC, processes, processes)?;
        }
        let (uid, gid) = (Uid::from_raw(self.plan.uid), Gid::from_raw(self.plan.uid));
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        let status = self.status.1.as_raw_fd();
        let socket = self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let (rows, columns) = self.plan.terminal.unwrap_or_default();
        let mut words = vec![format!("hsup-init {status} {socket} {rows} {columns} --")];
        words = words
            .iter()
            .flat_map(|line| line.split(' '))
            .map(str::to_owned)
            .collect();
        words.extend(self.plan.command.iter().cloned());
        inherit(self.status.1.as_fd())?;
        if let Some(socket) = &self.socket {
            inherit(socket.as_fd())?;
        }
        let environment = self.plan.environment.iter();
        let environment: Vec<_> = environment
            .map(|(name, value)| c(&format!("{name}={value}")))
            .collect();
        self.execute(&words, &environment)
    }

    fn become_waiter(&self, init: Pid) -> io::Result<()> {
        let directory = File::open(&self.directory)?;
        let inherited = [self.status.0.as_fd(), self.life.as_fd(), directory.as_fd()];
        let mut words = vec![
            "anything".to_owned(),
            "hsup-wait".to_owned(),
            init.to_string(),
        ];
        let hand = |descriptor: BorrowedFd<'_>| {
            inherit(descriptor)?;
            io::Result::Ok(descriptor.as_raw_fd().to_string())
        };
        for descriptor in inherited {
            words.push(hand(descriptor)?);
        }
        // Nobody keeps what it writes: the tests read all of it.
        words.extend(["-1", "-1"].map(str::to_owned));
        for file in &self.oom {
            words.push(hand(file.as_fd())?);
        }
        inherit(self.sweep.as_fd())?;
        let sweep = self.sweep.as_raw_fd().to_string();
        let place = self.root.to_str().expect("text");
        words.extend(["--", &sweep, "sh", "-c", SWEEP, place].map(str::to_owned));
        self.execute(&words, &[c("PATH=/usr/bin:/bin")])
    }

    fn execute(&self, words: &[String], environment: &[CString]) -> io::Result<()> {
        let words: Vec<_> = words.iter().map(|word| c(word)).collect();
        let how = AtFlags::AT_EMPTY_PATH;
        execveat(&self.program, c"", &words, environment, how)?;
        Ok(())
    }
}

fn c(text: &str) -> CString {
    CString::new(text).expect("no NUL in a test")
}

fn inherit(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}
