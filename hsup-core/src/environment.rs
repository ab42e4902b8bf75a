//! The whole environment of a dyno.
//!
//! From the bottom up: a base, the config vars, then `PORT` and `DYNO`. The base depends
//! on where the dyno runs. An app in its own directory (a Procfile) is somebody's work in
//! progress, so there the base is what hsup itself was started with, as with foreman; a
//! release on this host gets only what a login has; a container nothing of the host.
//! `PORT` and `DYNO` always win: the config var `PORT` is the base of all dynos' ports,
//! and what a dyno must listen on is the port that was allotted to it.

use std::{collections::BTreeMap, ffi::OsString};

use crate::{name::DynoName, release::ConfigVars};

/// What a dyno starts with, below its config vars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// All of hsup's environment but what was meant for hsup itself.
    Inherited,
    /// Of hsup's environment `PATH`, `HOME`, `USER` and `LANG`.
    Login,
    /// Nothing of the host: a container with the app in `/app`.
    Container,
}

/// `PATH` as Heroku's stack images have it, before buildpacks put theirs in front.
const CONTAINER_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
const LOGIN: &[&str] = &["PATH", "HOME", "USER", "LANG"];

/// What a service manager tells hsup about hsup. A dyno that took it for its own would
/// serve hsup's sockets, or answer in hsup's place.
/// And the token of its logs is none of theirs.
const OF_THE_SERVICE: &[&str] = &[
    "LOGPLEX_URL",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "JOURNAL_STREAM",
];

/// The environment of `dyno`, which is to listen on `port`.
///
/// `host` is hsup's own environment, such as [`std::env::vars_os`] has it. What of it is
/// not UTF-8 is left out: it does not fit through the driver protocol.
pub fn dyno_environment(
    base: Base,
    host: impl IntoIterator<Item = (OsString, OsString)>,
    config: &ConfigVars,
    dyno: &DynoName,
    port: u16,
) -> BTreeMap<String, String> {
    let mut environment = match base {
        Base::Container => [("PATH", CONTAINER_PATH), ("HOME", "/app"), ("PWD", "/app")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        Base::Login => of_host(host, |name| LOGIN.contains(&name)),
        Base::Inherited => of_host(host, |name| {
            !name.starts_with("HSUP_") && !OF_THE_SERVICE.contains(&name)
        }),
    };
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    environment.extend(config.iter().map(own));
    environment.insert("PORT".to_owned(), port.to_string());
    environment.insert("DYNO".to_owned(), dyno.to_string());
    environment
}

fn of_host(
    host: impl IntoIterator<Item = (OsString, OsString)>,
    is_wanted: impl Fn(&str) -> bool,
) -> BTreeMap<String, String> {
    host.into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| is_wanted(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    const HOST: &[(&str, &str)] = &[
        ("PATH", "/bin"),
        ("HOME", "/home/me"),
        ("USER", "me"),
        ("LANG", "C.UTF-8"),
        ("EDITOR", "ed"),
        ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ("HSUP_CONTROL_DIR", "/ctl"),
        ("NOTIFY_SOCKET", "/run/systemd/notify"),
        ("LOGPLEX_URL", "https://token:t.1@logs.example/logs"),
        ("LISTEN_FDS", "1"),
        ("PORT", "80"),
        ("DYNO", "run.1"),
    ];

    fn host() -> impl Iterator<Item = (OsString, OsString)> {
        let odd = (OsString::from("ODD"), OsString::from_vec(vec![0xff]));
        HOST.iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .chain([odd])
    }

    fn environment(base: Base, config: &[(&str, &str)]) -> Vec<String> {
        let config = config.iter().copied().collect();
        let dyno = "web.2".parse().unwrap();
        dyno_environment(base, host(), &config, &dyno, 5001)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    #[test_case(Base::Inherited, &[
        "DYNO=web.2", "EDITOR=ed", "HOME=/home/me", "LANG=C.UTF-8", "PATH=/bin", "PORT=5001", "USER=me",
        "XDG_RUNTIME_DIR=/run/user/1000",
    ]; "inherited")]
    #[test_case(Base::Login, &[
        "DYNO=web.2", "HOME=/home/me", "LANG=C.UTF-8", "PATH=/bin", "PORT=5001", "USER=me",
    ]; "login")]
    #[test_case(Base::Container, &[
        "DYNO=web.2", "HOME=/app", "PATH=/usr/local/bin:/usr/bin:/bin", "PORT=5001", "PWD=/app",
    ]; "container")]
    fn a_base(base: Base, expected: &[&str]) {
        assert_eq!(environment(base, &[]), expected);
    }

    #[test]
    fn config_vars_win_over_the_base_and_what_is_allotted_over_them() {
        let config = [("PATH", "/app/bin"), ("PORT", "9000"), ("HSUP_X", "mine")];
        assert_eq!(
            environment(Base::Container, &config),
            [
                "DYNO=web.2",
                "HOME=/app",
                "HSUP_X=mine",
                "PATH=/app/bin",
                "PORT=5001",
                "PWD=/app"
            ]
        );
    }

    proptest! {
        #[test]
        fn a_container_knows_nothing_of_the_host(
            names in prop::collection::vec("[A-Z_]{1,8}", 0..10),
        ) {
            let host = names.iter().map(|name| (name.into(), "secret of the host".into()));
            let dyno = "web.1".parse().unwrap();
            let config = ConfigVars::default();
            let environment = dyno_environment(Base::Container, host, &config, &dyno, 1);
            prop_assert!(environment.values().all(|value| value != "secret of the host"));
        }
    }
}
