//! The driver's command line: five options, read by hand to start fast.

use std::{ffi::OsString, path::PathBuf};

use nix::unistd::Uid;
use thiserror::Error;

pub(crate) const HELP: &str = "\
Runs the dynos of hsup as plain processes of its own user

Usage: hsup-driver-simple [OPTIONS]

It speaks hsup.driver.v1 on the socket of --socket, on a listening descriptor handed down
by its parent (LISTEN_FDS), or on the socket HSUP_DRIVER_SOCKET.

Options:
      --socket PATH    Make a socket at PATH and serve on it
      --allow-uid UID  Let this user call the driver, besides its own and root (can be
                       repeated); dynos run as the driver's user all the same
      --no-cgroups     Do not keep each dyno in a cgroup of its own where this user may make
                       one: a start takes a little less time, and a process that takes pains
                       to leave its dyno is not found when that is stopped
      --child          End when there is no connection and no running dyno for 5 s
  -h, --help           Print this help
  -V, --version        Print the version
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Help,
    Version,
    Serve(Args),
}

/// How to serve.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) allow: Vec<Uid>,
    pub(crate) no_cgroups: bool,
    pub(crate) child: bool,
}

/// The command line is not one of ours.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum UsageError {
    #[error("unknown argument `{}`", .0.display())]
    Unknown(OsString),
    #[error("{0} needs a value")]
    NoValue(&'static str),
    #[error("`{}` is not the number of a user", .0.display())]
    BadUid(OsString),
}

/// Reads the arguments that follow the program's name.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Action, UsageError> {
    let mut parsed = Args::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (name, joined) = match arg.to_str().and_then(|arg| arg.split_once('=')) {
            Some((name, value)) if name.starts_with("--") => {
                (OsString::from(name), Some(OsString::from(value)))
            }
            _ => (arg.clone(), None),
        };
        match (name.to_str(), joined) {
            (Some("-h" | "--help"), None) => return Ok(Action::Help),
            (Some("-V" | "--version"), None) => return Ok(Action::Version),
            (Some("--no-cgroups"), None) => parsed.no_cgroups = true,
            (Some("--child"), None) => parsed.child = true,
            (Some("--socket"), joined) => {
                let value = joined.or_else(|| args.next());
                let value = value.ok_or(UsageError::NoValue("--socket"))?;
                parsed.socket = Some(value.into());
            }
            (Some("--allow-uid"), joined) => {
                let value = joined.or_else(|| args.next());
                let value = value.ok_or(UsageError::NoValue("--allow-uid"))?;
                let number = value.to_str().and_then(|text| text.parse().ok());
                let number = number.ok_or(UsageError::BadUid(value))?;
                parsed.allow.push(Uid::from_raw(number));
            }
            _ => return Err(UsageError::Unknown(arg)),
        }
    }
    Ok(Action::Serve(parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Action, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_stand_in_any_order_and_both_forms() {
        let expected = Args {
            socket: Some("/a=b.sock".into()),
            allow: vec![Uid::from_raw(7), Uid::from_raw(8)],
            no_cgroups: true,
            child: true,
        };
        let line = "--allow-uid 7 --no-cgroups --child --socket=/a=b.sock --allow-uid=8";
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
        assert_eq!(error("--socket"), "--socket needs a value");
        assert_eq!(error("--allow-uid me"), "`me` is not the number of a user");
    }
}
