//! The whole environment of a dyno.
//!
//! From the bottom up: a base, what the dyno is told of its release (`HEROKU_…`), the config
//! vars, then `PORT` and `DYNO`. The base depends
//! on where the dyno runs. An app in its own directory (a Procfile) is somebody's work in
//! progress, so there the base is what hsup itself was started with, as with foreman; a
//! release on this host gets only what a login has; a container nothing of the host.
//! `PORT` and `DYNO` always win: the config var `PORT` is the base of all dynos' ports,
//! and what a dyno must listen on is the port that was allotted to it.

use std::{collections::BTreeMap, ffi::OsString};

use crate::{
    name::{DynoId, DynoName},
    release::{AppMetadata, Release},
};

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

/// A dyno that is to be started.
#[derive(Clone, Copy, Debug)]
pub struct Dyno<'a> {
    /// `web.1`.
    pub name: &'a DynoName,
    /// Which of those of that name it is.
    pub id: &'a DynoId,
    /// Its port.
    pub port: u16,
}

/// The environment of `dyno`, which is one of `release`.
///
/// `host` is hsup's own environment, such as [`std::env::vars_os`] has it. What of it is
/// not UTF-8 is left out, as [`left_out`] tells: it does not fit through the driver protocol.
pub fn dyno_environment(
    base: Base,
    host: impl IntoIterator<Item = (OsString, OsString)>,
    release: &Release,
    dyno: Dyno<'_>,
) -> BTreeMap<String, String> {
    let mut environment = match base {
        Base::Container => [("PATH", CONTAINER_PATH), ("HOME", "/app"), ("PWD", "/app")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        Base::Login | Base::Inherited => of_host(host, |name| base.takes(name)),
    };
    if base != Base::Inherited || release.metadata.is_some() {
        environment.extend(metadata(release, dyno.id));
    }
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    environment.extend(release.config.iter().map(own));
    environment.insert("PORT".to_owned(), dyno.port.to_string());
    environment.insert("DYNO".to_owned(), dyno.name.to_string());
    environment
}

impl Base {
    /// Whether a variable of hsup's own environment is part of it.
    fn takes(self, name: &str) -> bool {
        match self {
            Self::Inherited => !name.starts_with("HSUP_") && !OF_THE_SERVICE.contains(&name),
            Self::Login => LOGIN.contains(&name),
            Self::Container => false,
        }
    }
}

/// Which variables of `host` dynos do without though they would be part of `base`, for people:
/// names, and no values. None: there are none.
pub fn left_out(
    base: Base,
    host: impl IntoIterator<Item = (OsString, OsString)>,
) -> Option<String> {
    let mut names: Vec<String> = host
        .into_iter()
        .filter(|(name, value)| name.to_str().is_none() || value.to_str().is_none())
        .map(|(name, _)| name.to_string_lossy().escape_debug().to_string())
        .filter(|name| base.takes(name))
        .collect();
    names.sort();
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        format!("dynos do without these variables of hsup's, which are not UTF-8: {names}")
    })
}

/// What Heroku tells dynos of themselves, as far as it is known. An app that runs in its
/// own directory is told nothing: apps take these for a sign that they run in production.
///
/// Heroku's list: <https://devcenter.heroku.com/articles/dyno-metadata>.
fn metadata(release: &Release, dyno_id: &DynoId) -> impl Iterator<Item = (String, String)> {
    let known = release.metadata.as_deref();
    let of = |field: fn(&AppMetadata) -> &str| known.map_or("", field).to_owned();
    let app_name = of(|known| &known.app_name);
    let version = match known.map(|known| known.release_version) {
        None | Some(0) => release.version,
        Some(version) => version,
    };
    [
        ("HEROKU_APP_ID", of(|known| &known.app_id)),
        (
            "HEROKU_APP_NAME",
            if app_name.is_empty() {
                release.app.clone()
            } else {
                app_name
            },
        ),
        (
            "HEROKU_APP_DEFAULT_DOMAIN_NAME",
            of(|known| &known.app_default_domain),
        ),
        ("HEROKU_DYNO_ID", dyno_id.to_string()),
        ("HEROKU_RELEASE_VERSION", format!("v{version}")),
        (
            "HEROKU_RELEASE_CREATED_AT",
            of(|known| &known.release_created_at),
        ),
        ("HEROKU_BUILD_COMMIT", of(|known| &known.slug_commit)),
        (
            "HEROKU_BUILD_DESCRIPTION",
            of(|known| &known.slug_description),
        ),
        ("HEROKU_SLUG_COMMIT", of(|known| &known.slug_commit)),
        (
            "HEROKU_SLUG_DESCRIPTION",
            of(|known| &known.release_description),
        ),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name.to_owned(), value))
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
        of_release(
            base,
            &Release {
                config: config.iter().copied().collect(),
                ..Release::default()
            },
        )
        .into_iter()
        .filter(|pair| !pair.starts_with("HEROKU_"))
        .collect()
    }

    fn of_release(base: Base, release: &Release) -> Vec<String> {
        let (name, id) = ("web.2".parse().unwrap(), "web-2-abc".parse().unwrap());
        let dyno = Dyno {
            name: &name,
            id: &id,
            port: 5001,
        };
        dyno_environment(base, host(), release, dyno)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    fn told(base: Base, release: &Release) -> Vec<String> {
        let mut told = of_release(base, release);
        told.retain(|pair| pair.starts_with("HEROKU_"));
        told
    }

    #[test]
    fn a_dyno_is_told_who_it_is_as_far_as_that_is_known() {
        let mut release = Release {
            app: "shop".into(),
            version: 7,
            ..Release::default()
        };
        let little = [
            "HEROKU_APP_NAME=shop",
            "HEROKU_DYNO_ID=web-2-abc",
            "HEROKU_RELEASE_VERSION=v7",
        ];
        for base in [Base::Login, Base::Container] {
            assert_eq!(told(base, &release), little);
        }
        assert_eq!(told(Base::Inherited, &release), Vec::<String>::new());

        release.metadata = Some(Box::new(AppMetadata {
            app_id: "a-1".into(),
            app_name: "shop-production".into(),
            app_default_domain: "shop-0123.herokuapp.com".into(),
            release_version: 42,
            release_created_at: "2015-04-02T18:00:42Z".into(),
            release_description: "Deploy 2c3a0b2".into(),
            slug_commit: "2c3a0b2".into(),
            ..AppMetadata::default()
        }));
        release.config.insert("HEROKU_APP_NAME", "mine");
        for base in [Base::Inherited, Base::Login, Base::Container] {
            assert_eq!(
                told(base, &release),
                [
                    "HEROKU_APP_DEFAULT_DOMAIN_NAME=shop-0123.herokuapp.com",
                    "HEROKU_APP_ID=a-1",
                    "HEROKU_APP_NAME=mine",
                    "HEROKU_BUILD_COMMIT=2c3a0b2",
                    "HEROKU_DYNO_ID=web-2-abc",
                    "HEROKU_RELEASE_CREATED_AT=2015-04-02T18:00:42Z",
                    "HEROKU_RELEASE_VERSION=v42",
                    "HEROKU_SLUG_COMMIT=2c3a0b2",
                    "HEROKU_SLUG_DESCRIPTION=Deploy 2c3a0b2",
                ]
            );
        }
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
    fn what_is_left_out_is_named_and_its_value_is_not() {
        let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let odd = || {
            [
                (bytes(b"X\xe9"), "hunter2".into()),
                ("ODD".into(), bytes(b"hunter2\xff")),
                ("LANG".into(), bytes(b"\xff")),
                ("HSUP_X".into(), bytes(b"\xff")),
            ]
        };
        let of = |base| left_out(base, host().chain(odd()));
        let said = |names: &str| {
            Some(format!(
                "dynos do without these variables of hsup's, which are not UTF-8: {names}"
            ))
        };
        assert_eq!(of(Base::Inherited), said("LANG, ODD, ODD, X\u{fffd}"));
        assert_eq!(of(Base::Login), said("LANG"));
        assert_eq!(of(Base::Container), None);
        let fine = host().filter(|(name, _)| name != "ODD");
        assert_eq!(left_out(Base::Inherited, fine), None);
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
            let (name, id) = ("web.1".parse().unwrap(), "web-1-abc".parse().unwrap());
            let dyno = Dyno { name: &name, id: &id, port: 1 };
            let environment = dyno_environment(Base::Container, host, &Release::default(), dyno);
            prop_assert!(environment.values().all(|value| value != "secret of the host"));
        }
    }
}
