//! What the first process of a dyno finds: its argv, its environment, and nothing of the driver's.

use std::collections::BTreeSet;

use super::super::{
    case::{Case, Need, NotPassed, case, check, check_eq},
    context::Context,
    process::CANARY,
    requests::{code, env},
};

const START: &str = "start";

pub(crate) const CASES: &[Case] = &[
    case!(
        START,
        "argv arrives as it was given",
        "§6: argv exec'd as is",
        argv,
        &[Need::Output]
    ),
    case!(
        START,
        "env arrives as it was given, and nothing is added",
        "§6: env is the whole environment; a driver never leaks its own",
        environment,
        &[Need::Output]
    ),
    case!(
        START,
        "an empty env stays empty",
        "§6: env is the whole environment; a driver never leaks its own",
        empty_environment,
        &[Need::Output]
    ),
    case!(
        START,
        "a dyno begins with the default signal dispositions",
        "§6: argv exec'd as is; §8 Stop needs a SIGTERM that is neither blocked nor ignored",
        signals,
        &[Need::Output]
    ),
    case!(
        START,
        "a dyno does not have the umask of the socket",
        "§7: umask 0177 is for the bind",
        umask,
        &[Need::Output]
    ),
    case!(
        START,
        "a dyno has its three descriptors and no other",
        "§11: stdin, stdout and stderr; any other would keep somebody's FIFO open",
        descriptors,
        &[Need::Output]
    ),
    case!(
        START,
        "a command that is not found exits 127",
        "§8 Start: argv[0] not found is a dyno that exits 127",
        not_found,
        &[Need::BareArgv]
    ),
    case!(
        START,
        "a command that is not executable exits 126",
        "§8 Start: argv[0] not executable is a dyno that exits 126",
        not_executable,
        &[Need::BareArgv]
    ),
];

async fn argv(cx: &Context) -> Result<(), NotPassed> {
    let args = [
        "a b",
        "",
        "two\nlines",
        "\n",
        "'single' \"double\"",
        "$HOME `id` $(id) \\",
        "*",
        "-n",
        "tab\tand  spaces ",
        "snow \u{2603}",
        "",
    ];
    let mut request = cx.request("").await?;
    request.argv = cx.argv("for a do printf '%s\\0' \"$a\"; done", &args);
    let mut dyno = cx.with_stdio(request, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(0)).await?;
    let printed = dyno.stdout.drain().await?;
    let expected: Vec<u8> = args
        .iter()
        .flat_map(|a| [a.as_bytes(), b"\0"].concat())
        .collect();
    check(
        printed == expected,
        format_args!("argv of {}", dyno.id()),
        format_args!("{:?}", String::from_utf8_lossy(&expected)),
        format_args!("{:?}", String::from_utf8_lossy(&printed)),
    )?;
    Ok(())
}

/// The names that `export -p` prints, without those that shells add by themselves.
fn exported(printed: &[u8], given: &BTreeSet<String>) -> BTreeSet<String> {
    const OF_THE_SHELL: [&str; 4] = ["PWD", "OLDPWD", "SHLVL", "_"];
    let printed = String::from_utf8_lossy(printed);
    let names = printed.lines().filter_map(|line| {
        let rest = line
            .strip_prefix("export ")
            .or_else(|| line.strip_prefix("declare -x "))?;
        Some(rest.split('=').next().unwrap_or(rest).to_owned())
    });
    names
        .filter(|name| given.contains(name) || !OF_THE_SHELL.contains(&name.as_str()))
        .collect()
}

async fn environment(cx: &Context) -> Result<(), NotPassed> {
    let odd = [
        ("PORT", "5000"),
        ("EMPTY", ""),
        ("SPACES", "a  b "),
        ("LINES_", "one\ntwo"),
        ("QUOTES", "'\"`$HOME\\"),
        ("SNOW", "\u{2603}"),
        ("lower_case", "1=2=3"),
    ];
    let mut request = cx.request("").await?;
    let values = "printf '%s\\0' \"$PORT\" \"$EMPTY\" \"$SPACES\" \"$LINES_\" \"$QUOTES\" \
                  \"$SNOW\" \"$lower_case\"; printf '\\n'; export -p";
    request.argv = cx.argv(values, &[]);
    request.env.extend(env(&odd));
    let given: BTreeSet<_> = request.env.keys().cloned().collect();
    let mut dyno = cx.with_stdio(request, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(0)).await?;
    let printed = dyno.stdout.drain().await?;
    let expected: Vec<u8> = odd
        .iter()
        .flat_map(|(_, v)| [v.as_bytes(), b"\0"].concat())
        .collect();
    let on = format!("env of {}", dyno.id());
    let values = &printed[..expected.len().min(printed.len())];
    check(
        values == expected,
        &on,
        format_args!("{:?}", String::from_utf8_lossy(&expected)),
        format_args!("{:?}", String::from_utf8_lossy(values)),
    )?;
    let names = exported(&printed[values.len()..], &given);
    check_eq(on, &names, &given)?;
    Ok(())
}

async fn empty_environment(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("export -p").await?;
    request.env.clear();
    let mut dyno = cx.with_stdio(request, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(0)).await?;
    let names = exported(&dyno.stdout.drain().await?, &BTreeSet::new());
    let on = format!("env of {}", dyno.id());
    check(
        !names.contains(CANARY),
        &on,
        "nothing of the driver's own environment",
        CANARY,
    )?;
    check_eq(on, &names, &BTreeSet::new())?;
    Ok(())
}

async fn signals(cx: &Context) -> Result<(), NotPassed> {
    let script = "while read -r k v; do case $k in SigBlk:|SigIgn:) echo \"$k $v\";; esac; done \
                  </proc/$$/status";
    let mut dyno = cx.start(script).await?;
    cx.exits(dyno.id(), code(0)).await?;
    let printed = dyno.stdout.drain().await?;
    let printed = String::from_utf8_lossy(&printed);
    if printed.is_empty() {
        let reason = "the dyno has no /proc".to_owned();
        return Err(NotPassed::Skipped(reason));
    }
    for line in printed.lines() {
        let mask = line.split_whitespace().last().unwrap_or_default();
        // Signals 32 and up are the C library's and the app's own: no driver can reset them all.
        let standard = u64::from_str_radix(mask, 16).map(|mask| mask & 0x7fff_ffff);
        let on = format!("signals of {}", dyno.id());
        check(standard == Ok(0), on, "none blocked, none ignored", line)?;
    }
    Ok(())
}

async fn umask(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.start("umask").await?;
    let umask = dyno.stdout.line().await?;
    let owner_bits = u32::from_str_radix(&umask, 8).map(|mask| mask & 0o700);
    check(
        owner_bits == Ok(0),
        format_args!("umask of {}", dyno.id()),
        "one that leaves the owner's bits",
        umask,
    )?;
    Ok(())
}

async fn descriptors(cx: &Context) -> Result<(), NotPassed> {
    // The shell's own descriptor for the listing is closed again when -e looks.
    let script = "for f in /proc/$$/fd/*; do [ -e \"$f\" ] && echo \"${f##*/}\"; done; :";
    let neighbour = cx.hang().await?;
    let mut dyno = cx.start(script).await?;
    cx.exits(dyno.id(), code(0)).await?;
    let printed = dyno.stdout.drain().await?;
    let printed = String::from_utf8_lossy(&printed);
    if printed.trim().is_empty() || printed.contains('*') {
        let reason = "the dyno has no /proc".to_owned();
        return Err(NotPassed::Skipped(reason));
    }
    let on = format!("descriptors of {}", dyno.id());
    check_eq(on, &printed.as_ref(), &"0\n1\n2\n")?;
    drop(neighbour);
    Ok(())
}

async fn exits_of(cx: &Context, argv: &[&str], wanted: i32) -> Result<(), NotPassed> {
    let mut request = cx.request("").await?;
    request.argv = argv.iter().map(|&word| word.to_owned()).collect();
    let mut dyno = cx.with_stdio(request, true)?;
    cx.launch(&mut dyno).await?;
    cx.exits(dyno.id(), code(wanted)).await?;
    Ok(())
}

async fn not_found(cx: &Context) -> Result<(), NotPassed> {
    exits_of(cx, &["/no/such/command", "x"], 127).await?;
    exits_of(cx, &["no-such-command-on-any-path"], 127).await
}

async fn not_executable(cx: &Context) -> Result<(), NotPassed> {
    // A directory is there on every root filesystem, and nobody may execute it.
    exits_of(cx, &["/"], 126).await
}
