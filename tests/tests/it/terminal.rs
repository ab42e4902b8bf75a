//! `hsup run` at a terminal: a real one, of which the test is the screen and the keyboard.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::{
        signal::{Signal, kill},
        termios::{FlowArg, Termios, tcflow, tcgetattr},
    },
    unistd::{Pid, setsid},
};

use crate::{
    app::{App, Running, processes_of},
    one_off::driver_of_its_own,
};

/// A terminal with what it has shown.
pub(crate) struct Terminal {
    keyboard: File,
    /// Held, so that the terminal is there before and after hsup.
    slave: File,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub(crate) fn open(rows: u16, columns: u16) -> Self {
        let terminal = Self::unread(rows, columns);
        terminal.read();
        terminal
    }

    /// One whose screen takes nothing yet.
    fn unread(rows: u16, columns: u16) -> Self {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(ptsname_r(&master).unwrap())
            .unwrap();
        let terminal = Self {
            keyboard: File::from(OwnedFd::from(master)),
            slave,
            shown: Arc::default(),
        };
        terminal.resize(rows, columns);
        terminal
    }

    /// Begins to take what is shown.
    fn read(&self) {
        let mut screen = self.keyboard.try_clone().unwrap();
        let shown = Arc::clone(&self.shown);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                shown.lock().unwrap().extend(&buffer[..count]);
            }
        });
    }

    #[expect(unsafe_code, reason = "an ioctl")]
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the request reads one winsize, which lives to the end of the call.
        let result =
            unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(result, 0);
    }

    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    pub(crate) fn press(&self, keys: &[u8]) {
        (&self.keyboard).write_all(keys).unwrap();
    }

    pub(crate) fn settings(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    /// Whether the screen takes more now.
    fn takes_more(&self) -> bool {
        let mut fds = [PollFd::new(self.slave.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
    }

    /// `hsup run` here, where the terminal is somebody else's: the kernel sends no SIGHUP when
    /// it is closed.
    fn run_as_a_guest<'a>(&self, app: &'a App, arguments: &[&str]) -> Running<'a> {
        let end = || self.slave.try_clone().unwrap();
        app.spawn_as("run", arguments, end(), end(), |command| {
            command.stdin(end());
        })
    }

    /// `hsup run` here, as a login has it: the terminal is its session's.
    fn run<'a>(&self, app: &'a App, arguments: &[&str]) -> Running<'a> {
        self.run_as(app, arguments, |_| ())
    }

    fn run_as<'a>(
        &self,
        app: &'a App,
        arguments: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Running<'a> {
        let end = || self.slave.try_clone().unwrap();
        app.spawn_as("run", arguments, end(), end(), |command| {
            command.stdin(end()).env("TERM", "vt52");
            prepare(command);
            begin_session(command);
        })
    }

    /// Has a program begin here, as a login has it.
    pub(crate) fn begin<'a>(&self, app: &'a App, mut command: Command) -> Running<'a> {
        let end = || self.slave.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end());
        begin_session(&mut command);
        Running::of(app, command.spawn().unwrap())
    }

    fn wait_for(&self, hsup: &Running<'_>, text: &str) {
        hsup.wait_for(&format!("{text:?} on the terminal"), || {
            self.shown().contains(text).then_some(())
        });
    }

    /// Waits for hsup's end with this code: nothing is left, and the settings are `before`.
    fn ends(&self, hsup: &mut Running<'_>, code: i32, before: &Termios) {
        assert_eq!(hsup.end().code(), Some(code), "{}", self.shown());
        hsup.nothing_is_left();
        assert_eq!(&self.settings(), before, "the settings are restored");
    }
}

/// Makes its terminal that of a session of its own.
#[expect(unsafe_code, reason = "a session is begun in the child")]
fn begin_session(command: &mut Command) {
    // SAFETY: both are system calls, and touch no memory of this process.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            match libc::ioctl(1, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

#[test]
fn the_window_has_its_size_from_the_first_instruction_on() {
    let app = App::procfile("web: true\n");
    for number in 0..20 {
        let terminal = Terminal::open(10 + number, 40 + number);
        let before = terminal.settings();
        let mut hsup = terminal.run(&app, &["stty size"]);
        terminal.ends(&mut hsup, 0, &before);
        let expected = format!("{} {}\r\n", 10 + number, 40 + number);
        terminal.wait_for(&hsup, &expected);
    }
}

#[test]
fn a_change_of_the_windows_size_arrives() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let line = "trap 'stty size' WINCH; echo ready; \
                while [ ! -e ../end ]; do sleep 0.02; done; exit 9";
    let mut hsup = terminal.run(&app, &[line]);
    terminal.wait_for(&hsup, "ready");
    for (rows, columns) in [(50, 132), (25, 80)] {
        terminal.resize(rows, columns);
        terminal.wait_for(&hsup, &format!("{rows} {columns}\r\n"));
    }
    app.write("end", "");
    terminal.ends(&mut hsup, 9, &before);
}

#[test]
fn what_the_terminal_is_and_the_code_are_passed_on() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let line = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo \"it is a $TERM\"; exit 7";
    let mut hsup = terminal.run(&app, &[line]);
    terminal.ends(&mut hsup, 7, &before);
    terminal.wait_for(&hsup, "it is a vt52\r\n");
    let mut hsup = terminal.run(&app, &["kill -KILL $$"]);
    terminal.ends(&mut hsup, 137, &before);
}

#[test]
fn ctrl_c_is_the_commands_and_hsup_goes_on() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let line = "trap 'echo caught' INT; echo ready; \
                while [ ! -e ../end ]; do sleep 0.02; done; exit 6";
    let mut hsup = terminal.run(&app, &[line]);
    terminal.wait_for(&hsup, "ready");
    terminal.press(b"\x03");
    terminal.wait_for(&hsup, "caught");
    app.write("end", "");
    terminal.ends(&mut hsup, 6, &before);
}

#[test]
fn ctrl_z_stops_a_job_in_the_commands_shell_and_not_hsup() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let line = "set -m; (echo ready; exec sleep 1000); echo stopped; read -r line; \
                echo \"got $line\"; kill -KILL %1; exit 5";
    let mut hsup = terminal.run(&app, &[line]);
    terminal.wait_for(&hsup, "ready");
    terminal.press(b"\x1a");
    terminal.wait_for(&hsup, "stopped");
    // hsup itself goes on: it passes on what is typed.
    terminal.press(b"more\r");
    terminal.wait_for(&hsup, "got more");
    terminal.ends(&mut hsup, 5, &before);
}

#[test]
fn ctrl_d_ends_the_commands_input() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let mut hsup = terminal.run(&app, &["cat; echo end; exit 4"]);
    terminal.press(b"line\r");
    terminal.wait_for(&hsup, "line\r\nline\r\n");
    terminal.press(b"\x04");
    terminal.ends(&mut hsup, 4, &before);
    terminal.wait_for(&hsup, "end\r\n");
}

#[test]
fn the_settings_are_restored_after_a_signal() {
    let app = App::procfile("web: true\n");
    for (signal, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGINT, 130),
        (Signal::SIGQUIT, 131),
    ] {
        let terminal = Terminal::open(24, 80);
        let before = terminal.settings();
        let mut hsup = terminal.run(&app, &["echo ready; exec sleep 1000"]);
        terminal.wait_for(&hsup, "ready");
        assert_ne!(terminal.settings(), before, "it is raw");
        hsup.signal(signal);
        terminal.ends(&mut hsup, code, &before);
    }
}

#[test]
fn a_closed_stdin_is_an_empty_one_at_a_terminal_too() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    #[expect(unsafe_code, reason = "a descriptor is closed in the child")]
    let close = |command: &mut Command| {
        // SAFETY: close is a system call, and nobody in the child has the descriptor any more.
        unsafe {
            command.pre_exec(|| match libc::close(0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    };
    let mut hsup = terminal.run_as(&app, &["cat; echo end; exit 3"], close);
    terminal.ends(&mut hsup, 3, &before);
    terminal.wait_for(&hsup, "end\r\n");
}

#[test]
fn a_signal_ends_a_command_whose_screen_takes_nothing() {
    let app = App::procfile("web: true\n");
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let terminal = Terminal::unread(24, 80);
        let before = terminal.settings();
        let mut hsup = terminal.run(&app, &["yes"]);
        hsup.wait_for("a full screen", || (!terminal.takes_more()).then_some(()));
        hsup.signal(signal);
        terminal.ends(&mut hsup, code, &before);
    }
}

#[test]
fn a_signal_ends_a_command_whose_output_was_stopped() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    // Ctrl-S here is the command's terminal's, as every key is.
    let mut hsup = terminal.run(&app, &["echo ready; exec yes"]);
    terminal.wait_for(&hsup, "ready");
    terminal.press(b"\x13");
    hsup.signal(Signal::SIGTERM);
    terminal.ends(&mut hsup, 143, &before);
    // And this stops hsup's own.
    let mut hsup = terminal.run(&app, &["echo begun; exec yes"]);
    terminal.wait_for(&hsup, "begun");
    tcflow(&terminal.slave, FlowArg::TCOOFF).unwrap();
    hsup.wait_for("a full screen", || (!terminal.takes_more()).then_some(()));
    hsup.signal(Signal::SIGTERM);
    terminal.ends(&mut hsup, 143, &before);
}

#[test]
fn output_that_the_screen_takes_late_is_all_there() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::unread(24, 80);
    let before = terminal.settings();
    let mut hsup = terminal.run(&app, &["seq 30000; exit 8"]);
    hsup.wait_for("a full screen", || (!terminal.takes_more()).then_some(()));
    terminal.read();
    terminal.ends(&mut hsup, 8, &before);
    terminal.wait_for(&hsup, "29999\r\n30000\r\n");
    let lines: Vec<_> = (1..=30000).map(|number| format!("{number}\r\n")).collect();
    assert_eq!(terminal.shown(), lines.concat());
}

#[test]
fn a_terminal_that_is_closed_ends_the_command_be_it_silent_or_not() {
    let app = App::procfile("web: true\n");
    for line in ["echo ready; exec yes", "echo ready; exec sleep 1000"] {
        let terminal = Terminal::unread(24, 80);
        let mut hsup = terminal.run_as_a_guest(&app, &[line]);
        let mut shown = [0; 5];
        (&terminal.keyboard).read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"ready");
        drop(terminal);
        assert_eq!(hsup.end().code(), Some(129), "{line}");
        hsup.nothing_is_left();
    }
}

/// A shell with job control at the terminal, which does `line`: `$hsup` begins there.
fn jobs<'a>(terminal: &Terminal, app: &'a App, line: &str) -> Running<'a> {
    let hsup = app.command("hsup");
    #[expect(clippy::disallowed_methods, reason = "the shell that hsup is a job of")]
    let mut shell = Command::new("bash");
    let variables = hsup.get_envs();
    shell
        .env_clear()
        .envs(variables.filter_map(|(name, value)| Some((name, value?))))
        .env("hsup", hsup.get_program())
        .current_dir(app.path("app"))
        .args(["-c", &format!("set -m; {line}")]);
    terminal.begin(app, shell)
}

#[test]
fn behind_another_job_a_command_runs_without_a_terminal_and_a_signal_ends_it() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let line = "$hsup run 'echo begun; cat; [ -t 0 ] || echo none; exec sleep 1000' & \
                echo \"job $!.\"; wait $!; echo \"code $?\"";
    let mut shell = jobs(&terminal, &app, line);
    terminal.wait_for(&shell, "begun\r\n");
    terminal.wait_for(&shell, "none\r\n");
    assert_eq!(terminal.settings(), before, "it is the shell's");
    let shown = terminal.shown();
    let pid = shown
        .split_once("job ")
        .unwrap()
        .1
        .split_once('.')
        .unwrap()
        .0;
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM).unwrap();
    terminal.wait_for(&shell, "code 143\r\n");
    terminal.ends(&mut shell, 0, &before);
}

#[test]
fn what_is_typed_for_another_job_is_not_read_behind_it() {
    let app = App::procfile("web: true\n");
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let line = "$hsup run 'cat; echo end' > ../file & read -r line; echo \"got $line\"; \
                wait $!; echo \"code $?\"; cat ../file";
    let mut shell = jobs(&terminal, &app, line);
    terminal.press(b"line\r");
    terminal.wait_for(&shell, "got line\r\n");
    terminal.wait_for(&shell, "code 0\r\n");
    terminal.ends(&mut shell, 0, &before);
    terminal.wait_for(&shell, "end\r\n");
}

#[test]
fn a_driver_that_refuses_to_attach_is_told_to_stop_what_it_has_started() {
    let app = App::procfile("web: true\n");
    app.faults("attach internal no terminals today\n");
    let (driver, socket) = driver_of_its_own(&app);
    let terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let arguments = ["--driver-socket", &socket, "--linger", "600s", "sleep 1000"];
    let mut hsup = terminal.run(&app, &arguments);
    assert_eq!(hsup.end().code(), Some(1), "{}", terminal.shown());
    terminal.wait_for(&hsup, "no terminals today");
    assert_eq!(terminal.settings(), before, "the settings are restored");
    assert_eq!(app.calls("start").len(), 1);
    assert_eq!(app.calls("stop").len(), 1);
    assert_eq!(app.calls("remove").len(), 1);
    assert_eq!(processes_of(&app), [driver.pid()]);
}
