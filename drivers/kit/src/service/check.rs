//! Whether the fields of a request are what the protocol allows.
//!
//! Nothing that fails here has changed any state; the messages name the field, and never a
//! config var's value.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use hsup_proto::driver::{Bind, BuildRequest, Capability, Limits, Release, StartRequest};
use tonic::Status;

use super::{Identity, Names};
use crate::signal::Signal;

/// The longest dyno or supervisor id.
const MAX_ID: usize = 63;
/// The longest name of an app or a process type, in bytes: List shows them of every dyno, and
/// has to stay below 4 MiB.
const MAX_NAME: usize = 128;
/// The longest artifact: a path and a bit.
const MAX_ARTIFACT: usize = 8 << 10;
/// How much of what a caller sent is shown to it in a message, which is a header on the wire.
const SHOWN: usize = 100;

/// The beginning of what a caller sent, for people.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text[..end].escape_debug()),
        None => text.escape_debug().to_string(),
    }
}

/// Checks an id against `[a-z0-9][a-z0-9-]{0,62}`.
pub(super) fn id(field: &str, value: &str) -> Result<(), Status> {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = value.bytes();
    let begins_well = bytes.next().is_some_and(word);
    if begins_well && bytes.all(|byte| word(byte) || byte == b'-') && value.len() <= MAX_ID {
        return Ok(());
    }
    Err(Status::invalid_argument(if value.is_empty() {
        format!("{field} is missing")
    } else {
        format!("{field} must match [a-z0-9][a-z0-9-]{{0,62}}")
    }))
}

/// Checks a name against what the driver accepts; `more` is what it may hold besides letters,
/// digits, `.`, `_` and `-`. An empty one is not looked at.
fn name(field: &str, value: &str, names: Names, more: &str) -> Result<(), Status> {
    if value.contains('\0') {
        return Err(Status::invalid_argument(format!(
            "{field} holds a NUL byte"
        )));
    }
    let begins_well = value.starts_with(|first: char| first.is_ascii_alphanumeric());
    let goes_on_well = value.chars().all(|char| {
        char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-') || more.contains(char)
    });
    if names == Names::Any || value.is_empty() || (begins_well && goes_on_well) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{field} must match [A-Za-z0-9][A-Za-z0-9._{more}-]*, and is `{}`",
        shown(value)
    )))
}

/// Checks the name of an app or of what is part of it, which a strict driver cannot do without.
fn needed(field: &str, value: &str, names: Names) -> Result<(), Status> {
    if names == Names::Strict && value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is missing")));
    }
    name(field, value, names, "")
}

/// Checks an artifact, which there must be.
pub(super) fn artifact(value: &str, names: Names) -> Result<(), Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument("artifact is missing"));
    }
    bounded("artifact", value, MAX_ARTIFACT)?;
    name("artifact", value, names, ":@+=~")
}

/// Checks that no option is one the driver does not know. The message reaches whoever wrote it,
/// and says what there is instead.
pub(super) fn options(given: &BTreeMap<String, String>, identity: &Identity) -> Result<(), Status> {
    let known = identity.options;
    let Some(key) = given.keys().find(|key| !known.contains(&key.as_str())) else {
        return Ok(());
    };
    let there_is = match known {
        [] => "none".to_owned(),
        known => format!("`{}`", known.join("`, `")),
    };
    Err(Status::invalid_argument(format!(
        "unknown option `{}`: the {} driver has {there_is}",
        shown(key),
        identity.name
    )))
}

/// Checks a Build request, and gives its release.
pub(super) fn build<'a>(
    request: &'a BuildRequest,
    identity: &Identity,
) -> Result<&'a Release, Status> {
    let names = identity.names;
    options(&request.options, identity)?;
    let release = request
        .release
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("release is missing"))?;
    needed("release.app", &release.app, names)?;
    name("release.stack", &release.stack, names, "")?;
    bounded("release.app", &release.app, MAX_NAME)?;
    checksum(&release.slug_checksum)?;
    Ok(release)
}

/// Checks `SHA256:<hex>`, or nothing.
fn checksum(text: &str) -> Result<(), Status> {
    let well_formed = text
        .strip_prefix("SHA256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if text.is_empty() || well_formed {
        Ok(())
    } else {
        Err(Status::invalid_argument(
            "release.slug_checksum must be SHA256: and 64 hexadecimal digits",
        ))
    }
}

fn bounded(field: &str, value: &str, most: usize) -> Result<(), Status> {
    if value.len() <= most {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{field} has {} bytes, and {most} is the most",
        value.len()
    )))
}

/// Checks a Start request.
pub(super) fn start(request: &StartRequest, identity: &Identity) -> Result<(), Status> {
    let has = |capability| identity.capabilities.contains(&capability);
    let invalid = |message: &'static str| Err(Status::invalid_argument(message));
    id("dyno_id", &request.dyno_id)?;
    id("supervisor_id", &request.supervisor_id)?;
    options(&request.options, identity)?;
    artifact(&request.artifact, identity.names)?;
    for (field, value) in [
        ("app", &request.app),
        ("process_type", &request.process_type),
    ] {
        bounded(field, value, MAX_NAME)?;
        needed(field, value, identity.names)?;
    }
    if request.argv.is_empty() && !identity.images {
        return invalid("argv is empty");
    }
    if request.argv.iter().any(|word| word.contains('\0')) {
        return invalid("a word of argv holds a NUL byte");
    }
    // A driver may run it in place of argv.
    if request.shell_line.contains('\0') {
        return invalid("shell_line holds a NUL byte");
    }
    if request.io_dir.contains('\0') {
        return invalid("io_dir holds a NUL byte");
    }
    let bad_name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
    if request.env.keys().any(bad_name) {
        return invalid("a name in env is empty, or holds = or a NUL byte");
    }
    if let Some((name, _)) = request.env.iter().find(|(_, value)| value.contains('\0')) {
        return Err(Status::invalid_argument(format!(
            "the value of {} in env holds a NUL byte",
            shown(name)
        )));
    }
    if request.tty && !has(Capability::Attach) {
        return invalid("tty is set, and this driver has no terminals");
    }
    // What would be ignored is not what was asked for.
    if !request.binds.is_empty() && !has(Capability::Binds) {
        return invalid("binds are given, and this driver has none (BINDS)");
    }
    request.binds.iter().try_for_each(bind)?;
    let unlimited = Limits::default();
    if request.limits.is_some_and(|limits| limits != unlimited) && !has(Capability::Limits) {
        return invalid("limits are given, and this driver has none (LIMITS)");
    }
    if !request.tty && has(Capability::StdioFifo) && !request.io_dir.starts_with('/') {
        return invalid("io_dir must be an absolute path");
    }
    Ok(())
}

/// Checks the paths of a bind: whose they are, and what is there, is the driver's to say.
fn bind(bind: &Bind) -> Result<(), Status> {
    let is_plain = |path: &str| {
        let mut parts = Path::new(path).components();
        let leads_back = parts.any(|part| part == Component::ParentDir);
        path.starts_with('/') && !leads_back && !path.contains('\0')
    };
    match [bind.host_path.as_str(), bind.place()]
        .into_iter()
        .find(|path| !is_plain(path))
    {
        None => Ok(()),
        Some(path) => Err(Status::invalid_argument(format!(
            "the bind path `{}` is not an absolute path without `..`",
            shown(path)
        ))),
    }
}

/// Reads a signal's name, `SIGTERM`; empty is `default`.
pub(super) fn signal(name: &str, default: Option<Signal>) -> Result<Signal, Status> {
    match default {
        Some(default) if name.is_empty() => Ok(default),
        _ => name.parse().map_err(|_| {
            Status::invalid_argument(format!("`{}` is not the name of a signal", shown(name)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use hsup_proto::driver::Durability;
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    #[test_case("a")]
    #[test_case("0-9")]
    #[test_case("web-1-abc")]
    #[test_case("a--")]
    fn good_ids(text: &str) {
        id("dyno_id", text).unwrap();
    }

    #[test_case("", "missing")]
    #[test_case("-a", "match")]
    #[test_case("A", "match")]
    #[test_case("../etc", "match")]
    #[test_case("a.b", "match")]
    #[test_case("é", "match")]
    fn bad_ids(text: &str, says: &str) {
        let status = id("dyno_id", text).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(says), "{status}");
    }

    #[test]
    fn an_id_has_at_most_63_bytes() {
        id("dyno_id", &"a".repeat(63)).unwrap();
        id("dyno_id", &"a".repeat(64)).unwrap_err();
    }

    #[test]
    fn signals_have_their_full_names() {
        assert_eq!(signal("SIGHUP", None).unwrap(), Signal::HUP);
        assert_eq!(signal("", Some(Signal::TERM)).unwrap(), Signal::TERM);
        signal("", None).unwrap_err();
        signal("TERM", None).unwrap_err();
        signal("15", None).unwrap_err();
    }

    fn good() -> StartRequest {
        StartRequest {
            dyno_id: "a".into(),
            supervisor_id: "s".into(),
            artifact: "x".into(),
            argv: vec!["true".into()],
            io_dir: "/io".into(),
            ..Default::default()
        }
    }

    fn identity(capabilities: &'static [Capability]) -> Identity {
        Identity {
            name: "test",
            version: "0",
            capabilities,
            durability: Durability::None,
            options: &[],
            images: false,
            names: Names::Any,
        }
    }

    fn refused(request: &StartRequest, capabilities: &'static [Capability]) -> String {
        let status = start(request, &identity(capabilities)).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.message().to_owned()
    }

    #[test]
    fn a_bad_environment_is_named_without_its_values() {
        let mut request = good();
        let value = "hunter2\0".to_owned();
        request.env.insert("TOKEN".to_owned(), value);
        let message = refused(&request, &[]);
        assert!(message.contains("TOKEN"), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }

    type Field = fn(&mut StartRequest) -> &mut String;

    #[test]
    fn a_start_has_no_nul_byte() {
        let spoil: [(&str, Field); 5] = [
            ("app", |request| &mut request.app),
            ("artifact", |request| &mut request.artifact),
            ("a word of argv", |request| &mut request.argv[0]),
            ("shell_line", |request| &mut request.shell_line),
            ("io_dir", |request| &mut request.io_dir),
        ];
        for (name, field) in spoil {
            let mut request = good();
            field(&mut request).push_str("/a\0b");
            let message = refused(&request, &[Capability::StdioFifo]);
            assert_eq!(message, format!("{name} holds a NUL byte"));
        }
    }

    #[test]
    fn names_have_bounds() {
        let long = "x".repeat(MAX_ARTIFACT + 1);
        let spoil: [(&str, Field); 3] = [
            ("artifact", |request| &mut request.artifact),
            ("app", |request| &mut request.app),
            ("process_type", |request| &mut request.process_type),
        ];
        for (name, field) in spoil {
            let mut request = good();
            field(&mut request).clone_from(&long);
            let message = refused(&request, &[]);
            assert!(message.starts_with(name), "{message}");
            assert!(message.contains("8193 bytes"), "{message}");
        }
    }

    fn bound(host: &str, dyno: &str) -> StartRequest {
        StartRequest {
            binds: vec![Bind {
                host_path: host.to_owned(),
                dyno_path: dyno.to_owned(),
                writable: false,
            }],
            ..good()
        }
    }

    #[test_case("/srv/./data", ""; "the same place")]
    #[test_case("/", "/data")]
    fn paths_of_binds(host: &str, dyno: &str) {
        start(&bound(host, dyno), &identity(&[Capability::Binds])).unwrap();
    }

    #[test_case("", "/data", ""; "missing")]
    #[test_case("srv", "/data", "srv")]
    #[test_case("/srv/../etc", "/data", "/srv/../etc")]
    #[test_case("/a\0b", "/data", "/a\\0b")]
    #[test_case("/srv", "data", "data")]
    #[test_case("/srv", "/data/..", "/data/..")]
    fn paths_of_no_binds(host: &str, dyno: &str, named: &str) {
        let message = refused(&bound(host, dyno), &[Capability::Binds]);
        assert!(message.contains(&format!("`{named}`")), "{message}");
    }

    #[test]
    fn what_the_driver_would_ignore_is_refused() {
        let bound = bound("/srv", "/data");
        assert!(refused(&bound, &[Capability::Limits]).contains("BINDS"));
        start(&bound, &identity(&[Capability::Binds])).unwrap();
        let mut limited = good();
        limited.limits = Some(Limits::default());
        start(&limited, &identity(&[])).unwrap();
        limited.limits = Some(Limits {
            pids: 1,
            ..Default::default()
        });
        assert!(refused(&limited, &[Capability::Binds]).contains("LIMITS"));
        start(&limited, &identity(&[Capability::Limits])).unwrap();
    }

    #[test]
    fn an_option_that_is_unknown_is_told_with_those_that_are_known() {
        let mut request = good();
        request.options = BTreeMap::from([("swarn".to_owned(), "true".to_owned())]);
        let told = "unknown option `swarn`: the test driver has none";
        assert_eq!(refused(&request, &[]), told);
        let able = Identity {
            options: &["network", "swarm"],
            ..identity(&[])
        };
        let status = start(&request, &able).unwrap_err();
        let told = "unknown option `swarn`: the test driver has `network`, `swarm`";
        assert_eq!(status.message(), told);
    }

    #[test]
    fn a_message_shows_the_beginning_of_what_was_sent() {
        assert_eq!(shown("a\n"), "a\\n");
        assert_eq!(shown(&"é".repeat(100)), "é".repeat(100));
        assert_eq!(shown(&"é".repeat(4 << 20)), format!("{}…", "é".repeat(100)));
    }

    proptest! {
        #[test]
        fn an_artifact_may_hold_any_version(version in "[A-Za-z0-9][A-Za-z0-9._+~]{0,63}") {
            let text = format!("heroku-24@{version}:{}", "a5".repeat(32));
            prop_assert!(artifact(&text, Names::Strict).is_ok());
        }

        #[test]
        fn ids_match_their_pattern(text in "[a-z0-9][a-z0-9-]{0,62}") {
            prop_assert!(id("dyno_id", &text).is_ok());
        }
    }
}
