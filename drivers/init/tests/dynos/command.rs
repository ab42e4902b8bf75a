//! Which command runs, with which arguments and environment.

use crate::dyno::Plan;

/// Prints each argument in brackets.
const SHOW: &str = "#!/bin/sh\nfor word; do printf '[%s]' \"$word\"; done\n";

fn show(arguments: &[&str]) -> Plan {
    let command = [&["show"], arguments].concat();
    let mut plan = Plan::new(&command).file("app/show", SHOW, 0o755);
    plan.environment = vec![("PATH", "/nowhere:/app:/usr/bin")];
    plan
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn arguments_stay_as_they_are() {
    let words = [
        "a b",
        "",
        "'\"",
        "$HOME `id` \\ *",
        "-n",
        "--",
        "two\nlines",
        "é",
    ];
    let expected = format!("[{}]", words.join("]["));
    let long = "x".repeat(100_000);
    show(&words).run().is("\"code\":0", &expected);
    // The scripts are read by a shell, which hands them on; and no script reaches them.
    let script = "set -- other words; shift\n";
    for no_bash in [false, true] {
        let mut plan = show(&words).file("app/.profile", script, 0o644);
        plan.no_bash = no_bash;
        plan.run().is("\"code\":0", &expected);
        let lengths = ["sh", "-c", "echo ${#1} ${#2}", "sh", &long, &long];
        let mut plan = Plan::new(&lengths).file("app/.profile", script, 0o644);
        plan.no_bash = no_bash;
        plan.run().is("\"code\":0", "100000 100000\n");
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn scripts_are_read_in_herokus_order_and_none_stops_the_others() {
    for no_bash in [false, true] {
        let mut plan = Plan::sh("echo $ORDER $#; echo \"$PATH\"")
            .file("etc/profile.d/b.sh", "ORDER=$ORDER.2; return 3", 0o644)
            .file("etc/profile.d/a.sh", "export ORDER=1; false", 0o644)
            .file("etc/profile.d/c.bash", "ORDER=never", 0o644)
            .file("etc/profile.d/d.sh", "ORDER=unreadable", 0o000)
            .file("app/.profile.d/.hidden.sh", "ORDER=never", 0o644)
            .file(
                "app/.profile.d/a b'c$.sh",
                "ORDER=$ORDER.3; no-such-thing 2>/dev/null",
                0o644,
            )
            .file(
                "app/.profile.d/z.sh",
                "ORDER=$ORDER.4; PATH=/new:$PATH",
                0o644,
            )
            .file("app/.profile", "ORDER=$ORDER.5", 0o644);
        plan.no_bash = no_bash;
        let expected = "1.2.3.4.5 0\n/new:/usr/local/bin:/usr/bin:/bin\n";
        plan.run().is("\"code\":0", expected);
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_script_of_bash_finds_bash_and_its_variables_stay() {
    let script = "declare -x WORDS=declared; list=(a b); [[ ${#list[@]} = 2 ]] && WORDS+=-twice";
    let plan = Plan::sh("echo $WORDS").file("app/.profile.d/a.sh", script, 0o644);
    plan.run().is("\"code\":0", "declared-twice\n");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_script_that_exits_ends_the_dyno() {
    for no_bash in [false, true] {
        let mut plan = Plan::sh("echo never").file("app/.profile.d/a.sh", "exit 9", 0o644);
        plan.no_bash = no_bash;
        plan.run().is("\"code\":9", "");
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn without_scripts_there_is_no_shell() {
    let mut plan = Plan::new(&["env"]);
    plan.environment = vec![("PATH", "/usr/bin"), ("odd-name", "kept")];
    plan.run()
        .is("\"code\":0", "PATH=/usr/bin\nodd-name=kept\n");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn what_is_not_there_is_named_with_127() {
    let profiles: [&[&str]; 2] = [&[], &["app/.profile"]];
    for profile in profiles {
        for no_bash in [false, true] {
            let plan = |command: &str| {
                let mut plan = Plan::new(&[command, "argument"]);
                for path in profile {
                    plan = plan.file(path, "PATH=$PATH:/app/bin", 0o644);
                }
                plan.no_bash = no_bash;
                plan
            };
            plan("no-such")
                .run()
                .is("\"code\":127", "hsup-init: no-such: command not found\n");
            let end = plan("/app/no-such").run();
            assert_eq!(
                end.exit.as_deref(),
                Some("{\"code\":127,\"oom_killed\":false")
            );
            assert!(end.output.contains("/app/no-such"), "{}", end.output);
        }
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn what_cannot_be_run_is_named_with_126() {
    let cases: [(&str, &str, u32, &str); 5] = [
        ("app/plain", "x", 0o644, "ermission denied"),
        (
            "app/interpreter",
            "#!/no/such/interpreter\n",
            0o755,
            "interpreter",
        ),
        ("app/binary", "\0\0\0\0", 0o755, "xec format error"),
        ("app/elf", "\u{7f}ELF\0", 0o755, "xec format error"),
        // A directory of the layout.
        ("app/unused", "", 0o644, "irectory"),
    ];
    for (path, text, mode, said) in cases {
        for profile in [false, true] {
            let name = match path {
                "app/unused" => "/app/.profile.d".to_owned(),
                path => format!("/{path}"),
            };
            let mut plan = Plan::new(&[&name]).file(path, text, mode);
            if profile {
                plan = plan.file("app/.profile", "", 0o644);
            }
            let end = plan.run();
            let is = |code| end.exit == Some(format!("{{\"code\":{code},\"oom_killed\":false"));
            // A script's shell has its own mind about a missing interpreter.
            let as_bash = profile && path == "app/interpreter" && is(127);
            let said = if as_bash { "not found" } else { said };
            assert!(is(126) || as_bash, "{name}: {end:?}");
            assert!(end.output.contains(&name), "{}", end.output);
            assert!(end.output.contains(said), "{name}: {}", end.output);
        }
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_text_without_a_first_line_is_the_shells() {
    let mut plan = Plan::new(&["/app/text", "a b"]).file("app/text", "echo \"$1\"\n", 0o755);
    plan.environment.clear();
    plan.run().is("\"code\":0", "a b\n");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn one_that_may_not_be_run_hides_no_other_further_on() {
    let plan = || {
        let mut plan = Plan::new(&["tool"]).file("app/tool", "x", 0o644);
        plan.environment = vec![("PATH", "/app:/etc")];
        plan
    };
    let end = plan().run();
    assert_eq!(
        end.exit.as_deref(),
        Some("{\"code\":126,\"oom_killed\":false")
    );
    assert!(end.output.contains("/app/tool"), "{}", end.output);
    let plan = plan().file("etc/tool", "#!/bin/sh\necho found\n", 0o755);
    plan.run().is("\"code\":0", "found\n");
}
