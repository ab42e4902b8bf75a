//! `hsupctl driver`: what the driver says of itself, and whether it keeps to the protocol.

use std::{
    env, fmt,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
};

use hsup_proto::control::{GetDriverRequest, GetDriverResponse};

use super::{Outcome, connect::Supervisor, error::CtlError, promptly};
use crate::look::{Colour, Look, Report};

const CHECK: &str = "hsup-driver-check";

/// What hsup knows of its driver.
#[derive(Debug)]
pub struct DriverReport(GetDriverResponse);

pub async fn info(supervisor: Supervisor, look: &Look) -> Result<Outcome, CtlError> {
    let report = DriverReport(ask(supervisor).await?);
    Ok(Outcome::done(report.show(look).to_string()))
}

async fn ask(mut supervisor: Supervisor) -> Result<GetDriverResponse, CtlError> {
    promptly(supervisor.client.get_driver(GetDriverRequest {})).await
}

/// The socket of the driver that a running hsup uses.
pub async fn socket_of(supervisor: Supervisor) -> Result<PathBuf, CtlError> {
    let socket = ask(supervisor).await?.socket;
    if socket.is_empty() {
        return Err(CtlError::NoDriver);
    }
    Ok(socket.into())
}

/// Becomes `hsup-driver-check --socket SOCKET`; returns only when it cannot.
pub fn check(socket: &Path) -> Result<Outcome, CtlError> {
    let beside = env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned));
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = beside.into_iter().chain(env::split_paths(&path));
    let program = find(dirs).ok_or(CtlError::NoDriverCheck)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "neither a dyno nor a driver: this process ends by becoming it"
    )]
    let source = std::process::Command::new(&program)
        .arg("--socket")
        .arg(socket)
        .exec();
    Err(CtlError::DriverCheck {
        path: program,
        source,
    })
}

fn find(dirs: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    dirs.filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(CHECK))
        .find(|path| path.is_file())
}

impl Report for DriverReport {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let driver = &self.0;
        let state = match (driver.connected, driver.ready) {
            (false, _) => look.paint(Colour::Red, "not connected"),
            (true, false) => look.paint(Colour::Yellow, "not ready"),
            (true, true) => look.paint(Colour::Green, "ready"),
        };
        let because = if driver.message.is_empty() {
            String::new()
        } else {
            format!(": {}", driver.message)
        };
        let started = if driver.child {
            ", started by hsup"
        } else {
            ""
        };
        let pid = match driver.pid {
            0 => "-".to_owned(),
            pid => format!("{pid}{started}"),
        };
        let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let rows = [
            ("Driver", format!("{} {}", driver.name, driver.version)),
            ("State", format!("{state}{because}")),
            ("Socket", or_dash(&driver.socket)),
            ("Process", pid),
            ("Instance", or_dash(&driver.instance_id)),
            ("Durability", or_dash(&driver.durability)),
            ("Capabilities", or_dash(&driver.capabilities.join(" "))),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:>12}: {}", value.trim())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::tests::plain;

    #[test]
    fn a_driver_is_shown_with_what_it_can() {
        let report = DriverReport(GetDriverResponse {
            name: "simple".to_owned(),
            version: "0.2.0".to_owned(),
            instance_id: "a1".to_owned(),
            capabilities: vec!["STDIO_FIFO".to_owned(), "SIGNAL".to_owned()],
            durability: "NONE".to_owned(),
            ready: false,
            message: "out of disk".to_owned(),
            connected: true,
            socket: "/run/x.sock".to_owned(),
            pid: 12,
            child: true,
        });
        assert_eq!(
            report.show(&plain()).to_string(),
            "      Driver: simple 0.2.0\n\
             \x20      State: not ready: out of disk\n\
             \x20     Socket: /run/x.sock\n\
             \x20    Process: 12, started by hsup\n\
             \x20   Instance: a1\n\
             \x20 Durability: NONE\n\
             Capabilities: STDIO_FIFO SIGNAL\n"
        );
    }

    #[test]
    fn the_check_is_looked_for_in_order_and_never_in_the_working_directory() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(CHECK);
        hsup_core::files::write_atomic(&program, b"").unwrap();
        let dirs = || ["/nonexistent".into(), "".into(), dir.path().to_owned()].into_iter();
        assert_eq!(find(dirs()), Some(program));
        assert_eq!(find(dirs().take(2)), None);
    }
}
