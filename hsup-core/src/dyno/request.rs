//! What a driver is asked for, to start a dyno: the same for one of the formation and a one-off.

use std::{ffi::OsString, time::Duration};

use hsup_proto::driver::{Bind, StartRequest};

use crate::{
    command,
    driver::{DriverOptions, Up, demands},
    environment::{self, Base},
    release::Release,
    state::SupervisorId,
};

/// A dyno, and what is asked for it.
pub(crate) struct Request<'a> {
    pub(crate) supervisor_id: &'a SupervisorId,
    pub(crate) dyno: environment::Dyno<'a>,
    pub(crate) release: &'a Release,
    /// Its command.
    pub(crate) line: &'a str,
    /// What it starts with if it shares this host.
    pub(crate) host_base: Base,
    pub(crate) binds: &'a [Bind],
    pub(crate) options: &'a DriverOptions,
    /// How long what the command left may live on after it.
    pub(crate) linger: Duration,
}

impl Request<'_> {
    /// The call for a driver, as far as that can; where its standard streams lead, the caller
    /// adds. `host` is hsup's own environment.
    pub(crate) fn to(
        &self,
        up: &Up,
        artifact: &str,
        host: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> StartRequest {
        let base = base_on(up, self.host_base);
        let process = self.dyno.name;
        StartRequest {
            dyno_id: self.dyno.id.to_string(),
            supervisor_id: self.supervisor_id.as_str().to_owned(),
            artifact: artifact.to_owned(),
            app: self.release.app.clone(),
            release: self.release.version,
            process_type: process.process_type.to_string(),
            process_number: process.number.get(),
            argv: command::argv(self.line),
            env: environment::dyno_environment(base, host, self.release, self.dyno),
            limits: demands::limits(&up.info, &self.release.limits),
            binds: self.binds.to_vec(),
            options: self.options.to_wire(),
            shell_line: command::no_option(self.line),
            linger_ms: u32::try_from(self.linger.as_millis()).unwrap_or(u32::MAX),
            ..StartRequest::default()
        }
    }
}

/// What a dyno on this driver starts with: of the host only where it shares that.
pub(crate) fn base_on(up: &Up, host_base: Base) -> Base {
    if up.has_own_network() {
        Base::Container
    } else {
        host_base
    }
}
