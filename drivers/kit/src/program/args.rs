//! The command line of a driver: few options, read by hand to start fast.

use std::{ffi::OsString, path::PathBuf};

use nix::unistd::{Uid, User};
use thiserror::Error;

use super::Opt;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Help,
    Version,
    Serve(Args),
}

/// How to serve.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Args {
    pub(super) socket: Option<PathBuf>,
    pub(super) allow: Vec<Uid>,
    pub(super) group: Option<String>,
    pub(super) max_dynos: Option<usize>,
    pub(super) child: bool,
    /// The driver's own.
    pub(super) options: Vec<(&'static str, Option<OsString>)>,
}

/// The command line is not one of ours.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum UsageError {
    #[error("unknown argument `{}`", .0.display())]
    Unknown(OsString),
    #[error("{0} needs a value")]
    NoValue(&'static str),
    #[error("there is no user `{}`", .0.display())]
    NoUser(OsString),
    #[error("`{}` is not the name of a group", .0.display())]
    BadGroup(OsString),
    #[error("`{}` is not a number of dynos", .0.display())]
    BadMaxDynos(OsString),
}

/// Reads the arguments that follow the program's name; `own` are the driver's own options.
pub(super) fn parse(
    args: impl IntoIterator<Item = OsString>,
    own: &[Opt],
) -> Result<Action, UsageError> {
    let mut parsed = Args::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (name, joined) = match arg.to_str().and_then(|arg| arg.split_once('=')) {
            Some((name, value)) if name.starts_with("--") => (name, Some(OsString::from(value))),
            _ => (arg.to_str().unwrap_or_default(), None),
        };
        let is_joined = joined.is_some();
        let mut value = |name| {
            let value = joined.clone().or_else(|| args.next());
            value.ok_or(UsageError::NoValue(name))
        };
        let option = own.iter().find(|option| option.name == name);
        match (name, option) {
            ("-h" | "--help", _) if !is_joined => return Ok(Action::Help),
            ("-V" | "--version", _) if !is_joined => return Ok(Action::Version),
            ("--child", _) if !is_joined => parsed.child = true,
            ("--socket", _) => parsed.socket = Some(value("--socket")?.into()),
            ("--allow-uid", _) => {
                let value = value("--allow-uid")?;
                let user = value.to_str().and_then(user);
                parsed.allow.push(user.ok_or(UsageError::NoUser(value))?);
            }
            ("--socket-group", _) => {
                let group = value("--socket-group")?.into_string();
                parsed.group = Some(group.map_err(UsageError::BadGroup)?);
            }
            ("--max-dynos", _) => {
                let value = value("--max-dynos")?;
                let number = value.to_str().and_then(|text| text.parse().ok());
                let number = number.filter(|number| *number > 0);
                parsed.max_dynos = Some(number.ok_or(UsageError::BadMaxDynos(value))?);
            }
            (_, Some(option)) if option.value.is_some() => {
                parsed
                    .options
                    .push((option.name, Some(value(option.name)?)));
            }
            (_, Some(option)) if !is_joined => parsed.options.push((option.name, None)),
            _ => return Err(UsageError::Unknown(arg)),
        }
    }
    Ok(Action::Serve(parsed))
}

/// A user by the number, whether or not this machine knows it, or by the name.
fn user(text: &str) -> Option<Uid> {
    if let Ok(number) = text.parse() {
        return Some(Uid::from_raw(number));
    }
    User::from_name(text).ok().flatten().map(|user| user.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [Opt; 2] = [
        Opt {
            name: "--fast",
            value: None,
            help: "",
        },
        Opt {
            name: "--root",
            value: Some("DIR"),
            help: "",
        },
    ];

    fn parsed(line: &str) -> Result<Action, UsageError> {
        parse(line.split_whitespace().map(OsString::from), &OWN)
    }

    #[test]
    fn options_stand_in_any_order_and_both_forms() {
        let expected = Args {
            socket: Some("/a=b.sock".into()),
            allow: vec![Uid::from_raw(7), Uid::from_raw(8)],
            group: Some("staff".to_owned()),
            max_dynos: Some(5),
            child: true,
            options: vec![
                ("--fast", None),
                ("--root", Some("/a".into())),
                ("--root", Some("/b=c".into())),
            ],
        };
        let line = "--allow-uid 7 --fast --root /a --child --socket=/a=b.sock --allow-uid=8 \
                    --root=/b=c --socket-group staff --max-dynos=5";
        assert_eq!(parsed(line), Ok(Action::Serve(expected)));
        assert_eq!(parsed(""), Ok(Action::Serve(Args::default())));
        assert_eq!(parsed("-h"), Ok(Action::Help));
        assert_eq!(parsed("--version"), Ok(Action::Version));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |line| parsed(line).unwrap_err().to_string();
        assert_eq!(error("--sock x"), "unknown argument `--sock`");
        assert_eq!(error("x"), "unknown argument `x`");
        assert_eq!(error("--child=yes"), "unknown argument `--child=yes`");
        assert_eq!(error("--fast=yes"), "unknown argument `--fast=yes`");
        assert_eq!(error("--socket"), "--socket needs a value");
        assert_eq!(error("--root"), "--root needs a value");
        assert_eq!(error("--max-dynos 0"), "`0` is not a number of dynos");
        let unknown = "--allow-uid no-such-user-here";
        assert_eq!(error(unknown), "there is no user `no-such-user-here`");
    }

    #[test]
    fn a_user_may_be_named() {
        let Ok(Action::Serve(args)) = parsed("--allow-uid root") else {
            panic!("a user that there is");
        };
        assert_eq!(args.allow, [Uid::from_raw(0)]);
    }
}
