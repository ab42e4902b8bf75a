//! `hsup start` of the operator, with the driver of a host.

use std::{
    fs::{self, File},
    process::{Child, Command},
};

use hsup_tests::deadline::{self, poll};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::host::Host;

/// A running `hsup start`. Dropped, it is killed.
pub(crate) struct Running<'a> {
    host: &'a Host,
    child: Child,
}

impl<'a> Running<'a> {
    /// Starts the app of `host`; `change` may add to the command.
    pub(crate) fn start(host: &'a Host, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = host.hsup("hsup");
        command
            .arg("start")
            .arg("--driver-socket")
            .arg(host.socket());
        change(&mut command);
        let log = File::create(host.path("hsup.log")).unwrap();
        let errors = log.try_clone().unwrap();
        let child = command.stdout(log).stderr(errors).spawn().unwrap();
        Self { host, child }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.host.path("hsup.log")).unwrap_or_default()
    }

    /// The dynos as `hsupctl ps -o json` shows them.
    pub(crate) fn dynos(&self) -> Vec<Value> {
        let shown = deadline::output(self.host.hsup("hsupctl").args(["ps", "-o", "json"]));
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    }

    /// Waits until `done`; `what` names it.
    pub(crate) fn wait_for<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        poll(done).unwrap_or_else(|| {
            let driver = fs::read_to_string(self.host.path("driver.log")).unwrap_or_default();
            panic!("waited in vain for {what}:\n{}{driver}", self.log())
        })
    }

    pub(crate) fn wait_for_line(&self, text: &str) {
        self.wait_for(text, || self.log().contains(text).then_some(()));
    }

    /// Waits until exactly these dynos are up; their ids.
    pub(crate) fn wait_up(&self, names: &[&str]) -> Vec<String> {
        self.wait_for(&format!("{names:?} up"), || {
            let dynos = self.dynos();
            let text = |dyno: &Value, key: &str| dyno[key].as_str().unwrap_or_default().to_owned();
            let up = dynos.iter().filter(|dyno| dyno["state"] == "up");
            let shown: Vec<_> = up.map(|dyno| text(dyno, "name")).collect();
            let ids = dynos.iter().map(|dyno| text(dyno, "dyno_id"));
            (shown == names && dynos.len() == names.len()).then(|| ids.collect())
        })
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn interrupt(mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGINT).unwrap();
        let status = deadline::end(&mut self.child);
        assert_eq!(status.code(), Some(130), "{}", self.log());
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Already reaped is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
