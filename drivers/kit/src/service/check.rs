//! Whether the fields of a request are what the protocol allows.
//!
//! Nothing that fails here has changed any state; the messages name the field, and never a
//! config var's value.

use std::collections::BTreeMap;

use hsup_proto::driver::{BuildRequest, Capability, Release, StartRequest};
use nix::sys::signal::Signal;
use tonic::Status;

/// The longest dyno or supervisor id.
const MAX_ID: usize = 63;

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

/// Checks that no option is one the driver does not know.
pub(super) fn options(given: &BTreeMap<String, String>, known: &[&str]) -> Result<(), Status> {
    match given.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(Status::invalid_argument(format!(
            "unknown option `{}`",
            key.escape_debug()
        ))),
        None => Ok(()),
    }
}

/// Checks a Build request, and gives its release.
pub(super) fn build<'a>(request: &'a BuildRequest, known: &[&str]) -> Result<&'a Release, Status> {
    options(&request.options, known)?;
    let release = request
        .release
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("release is missing"))?;
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

/// What of a Start depends on the driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct StartRules<'a> {
    pub(super) options: &'a [&'a str],
    /// Whether an image may bring the command.
    pub(super) images: bool,
    pub(super) capabilities: &'a [Capability],
}

/// Checks a Start request.
pub(super) fn start(request: &StartRequest, rules: StartRules<'_>) -> Result<(), Status> {
    let invalid = |message: &'static str| Err(Status::invalid_argument(message));
    let offers = |capability| rules.capabilities.contains(&capability);
    id("dyno_id", &request.dyno_id)?;
    id("supervisor_id", &request.supervisor_id)?;
    options(&request.options, rules.options)?;
    if request.artifact.is_empty() {
        return invalid("artifact is missing");
    }
    if request.argv.is_empty() && !rules.images {
        return invalid("argv is empty");
    }
    if request.argv.iter().any(|word| word.contains('\0')) {
        return invalid("a word of argv holds a NUL byte");
    }
    let bad_name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
    if request.env.keys().any(bad_name) {
        return invalid("a name in env is empty, or holds = or a NUL byte");
    }
    if let Some((name, _)) = request.env.iter().find(|(_, value)| value.contains('\0')) {
        return Err(Status::invalid_argument(format!(
            "the value of {name} in env holds a NUL byte"
        )));
    }
    // What is not offered is not dropped in silence: a dyno without its limits is another dyno.
    if request.tty && !offers(Capability::Attach) {
        return invalid("tty is set, and this driver has no terminals");
    }
    if request.limits.is_some() && !offers(Capability::Limits) {
        return invalid("limits are set, and this driver has none");
    }
    if !request.binds.is_empty() && !offers(Capability::Binds) {
        return invalid("binds are set, and this driver has none");
    }
    if !request.tty && offers(Capability::StdioFifo) && !request.io_dir.starts_with('/') {
        return invalid("io_dir must be an absolute path");
    }
    Ok(())
}

/// Reads a signal's name, `SIGTERM`; empty is `default`.
pub(super) fn signal(name: &str, default: Option<Signal>) -> Result<Signal, Status> {
    match default {
        Some(default) if name.is_empty() => Ok(default),
        _ => name.parse().map_err(|_| {
            Status::invalid_argument(format!(
                "`{}` is not the name of a signal",
                name.escape_debug()
            ))
        }),
    }
}

#[cfg(test)]
mod tests {
    use hsup_proto::driver::{Bind, Limits};
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
        assert_eq!(signal("SIGHUP", None).unwrap(), Signal::SIGHUP);
        assert_eq!(signal("", Some(Signal::SIGTERM)).unwrap(), Signal::SIGTERM);
        signal("", None).unwrap_err();
        signal("TERM", None).unwrap_err();
        signal("15", None).unwrap_err();
    }

    #[test]
    fn a_bad_environment_is_named_without_its_values() {
        let request = StartRequest {
            dyno_id: "a".into(),
            supervisor_id: "s".into(),
            artifact: "x".into(),
            argv: vec!["true".into()],
            env: BTreeMap::from([("TOKEN".to_owned(), "hunter2\0".to_owned())]),
            io_dir: "/io".into(),
            ..Default::default()
        };
        let rules = StartRules {
            options: &[],
            images: false,
            capabilities: &[Capability::StdioFifo],
        };
        let status = start(&request, rules).unwrap_err();
        assert!(status.message().contains("TOKEN"), "{status}");
        assert!(!status.message().contains("hunter2"), "{status}");
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        let plain = StartRequest {
            dyno_id: "a".into(),
            supervisor_id: "s".into(),
            artifact: "x".into(),
            argv: vec!["true".into()],
            io_dir: "/io".into(),
            ..Default::default()
        };
        let limited = StartRequest {
            limits: Some(Limits::default()),
            ..plain.clone()
        };
        let bound = StartRequest {
            binds: vec![Bind::default()],
            ..plain.clone()
        };
        let terminal = StartRequest {
            tty: true,
            ..plain.clone()
        };
        let check = |request: &StartRequest, capabilities: &[Capability]| {
            let rules = StartRules {
                options: &[],
                images: false,
                capabilities,
            };
            start(request, rules).map_err(|status| status.code())
        };
        for (request, capability) in [
            (limited, Capability::Limits),
            (bound, Capability::Binds),
            (terminal, Capability::Attach),
        ] {
            let refused = Err(tonic::Code::InvalidArgument);
            assert_eq!(check(&request, &[Capability::StdioFifo]), refused);
            assert_eq!(
                check(&request, &[Capability::StdioFifo, capability]),
                Ok(())
            );
        }
    }

    proptest! {
        #[test]
        fn ids_match_their_pattern(text in "[a-z0-9][a-z0-9-]{0,62}") {
            prop_assert!(id("dyno_id", &text).is_ok());
        }
    }
}
