//! A config var's value, a slug's signature and a log token reach the dyno, the driver's socket
//! and private files, and nothing else.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
};

use hsup_tests::{
    deadline,
    fake::platform::{SIGNATURE, TOKEN},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};

use crate::{
    app::{App, Running, binaries, http, process, processes_of, web},
    core_dumps::{cores, dumping},
    heroku::{Shop, everything_in},
    survival::driver_pid,
};

const MARK: &str = "hunter2";

/// A release with the mark wherever a secret may be.
fn release(app: &App, version: u32, processes: &str) -> String {
    app.text(
        version,
        &format!(
            r#""Slug":"https://user:{MARK}@store.example/app.tgz?sig={MARK}#{MARK}",
               "LogplexURL":"https://token:{MARK}@logs.example/logs?{MARK}","#
        ),
        processes,
    )
    .replace(r#""Env":{"#, &format!(r#""Env":{{"SECRET":"{MARK}","#))
}

/// Everything that hsupctl shows, and the original's status.
fn shown(hsup: &Running<'_>, socket: &Path, plan: &Path) -> String {
    let plan = plan.to_str().unwrap();
    let questions: &[&[&str]] = &[
        &["ps"],
        &["ps", "-o", "wide"],
        &["ps", "-o", "json"],
        &["status", "web.1"],
        &["releases"],
        &["releases", "-o", "json"],
        &["plan", plan],
        &["driver", "info"],
        &["logs", "-n", "10000"],
        &["scale"],
    ];
    let mut all = String::new();
    for question in questions {
        let output = hsup.app.ctl(question);
        for part in [output.stdout, output.stderr] {
            all += &String::from_utf8_lossy(&part);
        }
    }
    all + &http(socket, "GET /status HTTP/1.0\r\nHost: x\r\n\r\n")
}

/// What the kernel shows of a process to its own user.
fn of_process(pid: i32) -> String {
    let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap();
    // Only root may look into it.
    let environment = fs::read(format!("/proc/{pid}/environ"));
    assert!(environment.is_ok() == Uid::effective().is_root());
    [
        read("cmdline"),
        environment.unwrap_or_default(),
        read("comm"),
    ]
    .iter()
    .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    .collect()
}

fn assert_private(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        let path = entry.path();
        if metadata.is_dir() {
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
            assert_private(&path);
        } else {
            assert!(
                mode == 0o600 || mode == 0o400,
                "{}: {mode:o}",
                path.display()
            );
        }
    }
}

#[test]
fn a_secret_is_seen_by_the_dyno_alone() {
    let app = App::empty();
    let prove = r#""[ ${#SECRET} = 7 ] && echo it has it; exec","#;
    let v1 = release(&app, 1, &web("", "1").replace(r#""exec","#, prove));
    app.hand_in(&v1);
    let hsup = app.control(&[]);
    hsup.wait_up(&["web.1"]);
    let sockets = fs::read_dir(app.path("rt/hsup")).unwrap().flatten();
    let mut sockets = sockets.map(|entry| entry.path());
    let socket = sockets
        .find(|path| path.extension().is_some_and(|end| end == "sock"))
        .unwrap();
    hsup.wait_for_line("it has it");
    let events = File::create(app.path("events")).unwrap();
    let mut command = app.command("hsupctl");
    command.args(["events", "-o", "json"]);
    let mut listener = command
        .stdout(events)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let read_events = || fs::read_to_string(app.path("events")).unwrap();
    hsup.wait_for("a snapshot", || (!read_events().is_empty()).then_some(()));

    // Bad releases of each kind: no JSON, no release, not built, not up.
    let values = [
        format!(r#"{{"Env":{{"SECRET":"{MARK}"#),
        format!(r#"{{"Env":{{"SECRET":["{MARK}"]}}}}"#),
        format!(r#"{{"Env":{{"SECRET={MARK}":""}}}}"#),
        format!(r#"{{"Env":{{"SECRET={MARK}": x}}}}"#),
        format!(r#"{{"LogplexURL":"{MARK}"}}"#),
    ];
    let mut said = String::new();
    for (index, text) in values.iter().enumerate() {
        app.hand_in(text);
        hsup.wait_for("the verdict on it", || {
            (hsup.log().matches("Release rejected").count() > index).then_some(())
        });
        said += &app.last_error().unwrap();
        assert_private(&app.path("ctl"));
    }
    let missing = format!("file:///no/such/{}/", "folder");
    let unbuildable = release(&app, 2, &web("", "1"));
    let from = unbuildable.find("https://user").unwrap();
    let to = from + unbuildable[from..].find('"').unwrap();
    app.hand_in(&(unbuildable[..from].to_owned() + &missing + &unbuildable[to..]));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    said += &app.last_error().unwrap();
    app.hand_in(&release(&app, 3, &process("web", "exit 3", 1)));
    hsup.wait_releases(&["v3 rejected", "v2 rejected", "v1 current"]);
    hsup.wait_up(&["web.1"]);
    said += &app.last_error().unwrap();

    // A crash of the driver, and the diagnostics of it all.
    let before = driver_pid(&hsup);
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    hsup.wait_for("another driver", || {
        hsup.wait_up(&["web.1"]);
        let dynos = hsup.dynos();
        (dynos[0]["restarts"] != 0 || hsup.log().contains("The driver is gone")).then_some(())
    });
    hsup.wait_up(&["web.1"]);
    hsup.signal(Signal::SIGUSR1);
    hsup.wait_for_line("driver connected");
    app.write("plan", &v1.replace(MARK, "changed-hunter2"));

    said += &shown(&hsup, &socket, &app.path("plan"));
    said += &of_process(hsup.pid());
    said += &of_process(driver_pid(&hsup));
    said += &hsup.log();
    said += &read_events();
    let place = said.find(MARK);
    let around = place.map(|at| &said[said.floor_char_boundary(at.saturating_sub(300))..at]);
    assert_eq!(around, None, "a secret follows this");

    // It is kept, so that it could have been shown.
    for name in ["ctl/loaded", "ctl/rejected"] {
        assert!(
            fs::read_to_string(app.path(name)).unwrap().contains(MARK),
            "{name}"
        );
    }
    assert_private(&app.path("ctl"));
    assert_private(&app.path("state"));
    listener.kill().unwrap();
    listener.wait().unwrap();
    hsup.interrupt();
}

/// What hsup is told besides the token, the slug's signature and the config vars of the platform.
const SECRETS: [&str; 6] = [
    "c0nf1g",
    "l0gplex",
    "us3r1nfo",
    "qu3ry",
    "n3trc",
    "m4lformed",
];

/// All that a run of an app on Heroku shows or leaves, with every kind of secret there is: what
/// it and its driver print, what they are asked, the process list, what a crash and a bad input
/// say, and every file at the end.
#[test]
fn no_secret_of_any_kind_is_anywhere() {
    let shop = Shop::deployed();
    let (app, [config, logplex, userinfo, query, netrc, malformed]) = (&shop.app, SECRETS);
    shop.heroku.set_config(&[("DATABASE_URL", config)]);
    app.faults("is fetching\n");
    let machine = "machine heroku.example login me@example.com";
    app.write(".netrc", &format!("{machine} password {netrc}\n"));
    let drains = [
        format!("http://u:{userinfo}@127.0.0.1:1/{query}?{query}"),
        format!("syslog://127.0.0.1:1/?token={query}"),
        format!("file://{}", app.path("lines").display()),
    ];
    let (socket, driver) = (app.path("s"), binaries().join("hsup-driver-fault"));
    let mut command = dumping(app, &binaries().join("hsup"));
    command
        .env("HEROKU_HOST", shop.heroku.url())
        .env("HEROKU_API_KEY", TOKEN)
        .env(
            "LOGPLEX_URL",
            format!("http://token:{logplex}@127.0.0.1:1/{query}"),
        )
        .env(
            "HSUP_LOG_TO",
            [&drains[0], &drains[2]].map(String::as_str).join(" "),
        )
        .args([
            "start",
            "-a",
            "shop",
            "--poll-every",
            "20ms",
            "--linger",
            "60s",
            "-d",
        ])
        .arg(&driver)
        .arg("-s")
        .arg(&socket);
    let mut hsup = app.running(command);
    hsup.wait_up(&["web.1"]);
    hsup.wait_for_line("Log drain http://127.0.0.1:1: Connection refused");

    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let mut said = String::new();
    for question in [
        &["ps", "-o", "json"][..],
        &["ps", "-o", "wide"],
        &["status"],
        &["status", "web.1"],
        &["releases", "-o", "json"],
        &["releases", "v3"],
        &["driver", "info"],
        &["logs", "-n", "10000"],
        &["scale"],
        &["version"],
    ] {
        let shown = app.ctl(question);
        said += &(text(shown.stdout) + &text(shown.stderr));
    }
    for path in ["/health", "/status", "/metrics", "/no/such"] {
        said += &http(&socket, &format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n"));
    }
    for pid in processes_of(app) {
        let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        said += &text(read("cmdline"));
        // hsup's own is where most of it comes from; a dyno has its config vars there.
        let environment = text(read("environ"));
        let is_told = pid == hsup.pid() || environment.contains("DYNO=");
        said += if is_told { "" } else { &environment };
    }

    // What cannot be right, and is a secret all the same.
    app.write(
        "bad.json",
        &format!(r#"{{"Version":9,"Env":{{"A":["{malformed}"]}}}}"#),
    );
    fs::create_dir(app.path("bad")).unwrap();
    app.write("bad/.env", &format!("A=\"{malformed}\n"));
    app.write("bad/Procfile", "web: true\n");
    let bad = app.path("bad.json");
    let shown = app.ctl(&["apply", bad.to_str().unwrap()]);
    said += &(text(shown.stdout) + &text(shown.stderr));
    let folder = app.path("bad");
    let nonsense = format!("nonsense://u:{malformed}@host/{malformed}");
    for wrong in [
        &["check", "-C", folder.to_str().unwrap()][..],
        &["start", "--log-to", &nonsense],
        &["start", "--logplex-url", &nonsense],
        &["start", "--log-to", &drains[1]],
        &["check", "-a", "shop"],
    ] {
        let mut command = app.command("hsup");
        command.env("HEROKU_HOST", shop.heroku.url()).args(wrong);
        let refused = deadline::output(&mut command);
        assert!(!refused.status.success(), "{wrong:?}");
        said += &(text(refused.stdout) + &text(refused.stderr));
    }

    // Crashes, with the diagnostics of what came before.
    hsup.signal(Signal::SIGUSR1);
    hsup.wait_for_line("driver connected");
    let before = driver_pid(&hsup);
    kill(Pid::from_raw(before), Signal::SIGABRT).unwrap();
    hsup.wait_for("another driver", || {
        (driver_pid(&hsup) != before).then_some(())
    });
    hsup.wait_up(&["web.1"]);
    hsup.signal(Signal::SIGABRT);
    assert!(!hsup.end().success());
    said += &hsup.log();
    hsup.leave();
    assert_eq!(cores(&app.path("")), [""; 0]);
    for name in [".netrc", "bad.json", "bad/.env"] {
        fs::remove_file(app.path(name)).unwrap();
    }
    // A release that is to run again, also while Heroku cannot be asked, has its config vars.
    assert_private(&app.path("state"));
    let kept = everything_in(&app.path("state"));
    assert!(kept.contains(config));
    said += &kept.replace(config, "");
    fs::remove_dir_all(app.path("state")).unwrap();
    said += &everything_in(&app.path(""));

    assert!(said.contains("heroku://shop/slugs/"), "it is named");
    for secret in [&SECRETS[..], &[TOKEN, SIGNATURE]].concat() {
        let place = said.find(secret);
        let around = place.map(|at| &said[said.floor_char_boundary(at.saturating_sub(300))..at]);
        assert_eq!(around, None, "{secret} follows this");
    }
}
