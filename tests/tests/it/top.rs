//! `hsupctl top` at a terminal: what it shows, what its keys do, and that it gives the terminal
//! back.

use std::{fs, process::Command};

use hsup_tests::deadline;
use nix::sys::{signal::Signal, termios::Termios};

use crate::{
    app::{App, Running},
    terminal::Terminal,
};

/// What a terminal is told when its screen of before is to be back.
const LEFT: &str = "\x1b[?1049l";

struct Top<'a> {
    terminal: &'a Terminal,
    /// How the terminal was.
    before: Termios,
    program: Running<'a>,
}

impl<'a> Top<'a> {
    /// Begins, and shows the app's `worker.1`.
    fn begin(terminal: &'a Terminal, app: &'a App, variables: &[(&str, &str)]) -> Self {
        let mut command = app.command("hsupctl");
        command.arg("top").env("TERM", "xterm");
        command.envs(variables.iter().copied());
        Self::with(terminal, app, command)
    }

    /// Begins with a command that brings it here.
    fn with(terminal: &'a Terminal, app: &'a App, command: Command) -> Self {
        let before = terminal.settings();
        let top = Self {
            program: terminal.begin(app, command),
            terminal,
            before,
        };
        top.draws("worker.1", 0);
        top
    }

    /// Waits until this is drawn, beyond the first `seen` bytes.
    fn draws(&self, text: &str, seen: usize) {
        self.program
            .wait_for(&format!("{text:?} on the screen"), || {
                self.terminal
                    .shown()
                    .get(seen..)?
                    .contains(text)
                    .then_some(())
            });
    }

    fn seen(&self) -> usize {
        self.terminal.shown().len()
    }

    /// Waits for its end; the terminal is as before.
    fn ends(mut self, code: i32) {
        let status = self.program.end();
        assert_eq!(status.code(), Some(code), "{}", self.terminal.shown());
        assert_eq!(
            self.terminal.settings(),
            self.before,
            "the settings are restored"
        );
        self.draws(LEFT, 0);
        self.program.leave();
    }
}

/// An hsup whose `worker.1` is up.
fn started(app: &App) -> Running<'_> {
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    hsup
}

#[test]
fn keys_drive_the_dynos() {
    let app = App::procfile("worker: echo at-work; sleep 1000\n");
    let hsup = started(&app);
    let terminal = Terminal::open(24, 80);
    let top = Top::begin(&terminal, &app, &[]);
    top.draws("at-work", 0);
    terminal.press(b"+");
    hsup.wait_up(&["worker.1", "worker.2"]);
    top.draws("worker.2", 0);
    // What takes something away is asked about, and `n` is no.
    let seen = top.seen();
    terminal.press(b"-");
    top.draws("fewer?", seen);
    terminal.press(b"n-y");
    hsup.wait_up(&["worker.1"]);
    terminal.press(b"sy");
    hsup.wait_for("worker.1 down", || {
        (hsup.dynos()[0]["state"] == "down").then_some(())
    });
    terminal.press(b"q");
    top.ends(0);
    hsup.interrupt();
}

#[test]
fn a_dyno_that_writes_little_has_its_lines_beside_one_that_writes_much() {
    let much = "seq -f 'much-%g' 3000; sleep 1000";
    let app = App::procfile(&format!("quiet: echo little; sleep 1000\nworker: {much}\n"));
    let hsup = app.start(&[]);
    hsup.wait_up(&["quiet.1", "worker.1"]);
    hsup.wait_for_line("much-3000");
    let terminal = Terminal::open(24, 80);
    let top = Top::begin(&terminal, &app, &[]);
    top.draws("little", 0);
    for (key, line) in [(b"G", "much-3000"), (b"g", "little")] {
        let seen = top.seen();
        terminal.press(key);
        top.draws(line, seen);
    }
    terminal.press(b"q");
    top.ends(0);
    hsup.interrupt();
}

#[test]
fn a_screen_of_another_size_is_drawn_anew() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = started(&app);
    let terminal = Terminal::open(24, 80);
    let top = Top::begin(&terminal, &app, &[("NO_COLOR", "1")]);
    for (rows, columns) in [(10, 40), (50, 132)] {
        let seen = top.seen();
        terminal.resize(rows, columns);
        top.draws("worker.1", seen);
    }
    // As Ctrl-L has it, too.
    let seen = top.seen();
    terminal.press(b"\x0c");
    top.draws("worker.1", seen);
    assert!(
        !terminal.shown().contains("\x1b[38;"),
        "there are no colours"
    );
    top.program.signal(Signal::SIGTERM);
    top.ends(128 + 15);
    hsup.interrupt();
}

/// `hsupctl top` by ssh, at a login with the app's environment: each call has an sshd of its own.
fn over_ssh(app: &App) -> Command {
    let path = |name: &str| app.path(name).display().to_string();
    for key in ["host", "caller"] {
        let mut keygen = app.command("/usr/bin/ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]);
        let output = deadline::output(&mut keygen);
        assert!(output.status.success(), "{output:?}");
    }
    let known = fs::read_to_string(app.path("host.pub")).unwrap();
    app.write("known", &format!("here {known}"));
    let hsupctl = app.command("hsupctl");
    // None of these has a space in it.
    let variables: Vec<_> = hsupctl
        .get_envs()
        .map(|(name, value)| {
            let [name, value] = [Some(name), value].map(|word| word.unwrap().to_str().unwrap());
            format!("{name}={value}")
        })
        .collect();
    app.write(
        "sshd_config",
        &format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nPrintMotd no\nPrintLastLog no\nSetEnv {}\n",
            path("host"),
            path("caller.pub"),
            variables.join(" "),
        ),
    );
    // Where sshd keeps those who are not known yet. Its start script makes it.
    fs::create_dir_all("/run/sshd").unwrap();
    let mut ssh = app.command("/usr/bin/ssh");
    ssh.env("TERM", "xterm")
        .args(["-t", "-F", "none", "-i", &path("caller")])
        .args(["-o", &format!("UserKnownHostsFile={}", path("known"))])
        .args([
            "-o",
            &format!(
                "ProxyCommand=/usr/sbin/sshd -i -E {} -f {}",
                path("sshd.log"),
                path("sshd_config")
            ),
        ])
        .arg("root@here")
        .arg(format!("{} top", hsupctl.get_program().display()));
    ssh
}

// sshd lets nobody in whose password is locked with a `!`; root's is not on Debian.
#[test]
#[ignore = "needs root and sshd"]
fn it_is_the_same_over_ssh() {
    let app = App::procfile("worker: echo at-work; sleep 1000\n");
    let hsup = started(&app);
    let terminal = Terminal::open(24, 80);
    let top = Top::with(&terminal, &app, over_ssh(&app));
    top.draws("at-work", 0);
    terminal.press(b"+");
    hsup.wait_up(&["worker.1", "worker.2"]);
    top.draws("worker.2", 0);
    // The size of a window goes with the keys.
    let seen = top.seen();
    terminal.resize(50, 132);
    top.draws("worker.2", seen);
    terminal.press(b"q");
    top.ends(0);
    hsup.interrupt();
}

#[test]
fn an_hsup_that_went_away_is_waited_for() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = started(&app);
    let terminal = Terminal::open(24, 80);
    let top = Top::begin(&terminal, &app, &[]);
    hsup.interrupt_beside_others();
    top.draws("away", 0);
    let hsup = started(&app);
    // Pressed until it acts: only one who looks can know that hsup is back.
    hsup.wait_for("worker.2", || {
        terminal.press(b"+");
        (hsup.dynos().len() > 1).then_some(())
    });
    terminal.press(b"q");
    top.ends(0);
    hsup.interrupt();
}

#[test]
fn another_hsup_does_not_take_the_place_of_one_that_went_away() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = started(&app);
    let terminal = Terminal::open(24, 80);
    let top = Top::begin(&terminal, &app, &[]);
    hsup.interrupt_beside_others();
    top.draws("away", 0);
    fs::create_dir(app.path("other")).unwrap();
    app.write("other/Procfile", "other: sleep 1000\n");
    let other = app.start(&["-C", app.path("other").to_str().unwrap()]);
    other.wait_up(&["other.1"]);
    // The second answer comes after it has looked once more.
    for _ in 0..2 {
        let seen = top.seen();
        terminal.press(b"+");
        top.draws("hsup is away", seen);
    }
    assert!(!terminal.shown().contains("other.1"));
    other.wait_up(&["other.1"]);
    terminal.press(b"q");
    top.ends(0);
    other.interrupt();
}

#[test]
fn without_a_terminal_there_is_something_else_to_use() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = started(&app);
    let output = app.ctl(&["top"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("top needs a terminal"), "{said}");
    hsup.interrupt();
}
