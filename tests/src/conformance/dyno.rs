//! The dynos of a case, and the scripts that they run: `/bin/sh`, and nothing else that a root
//! filesystem might lack.

use hsup_proto::driver::{Capability, StartRequest};
use tokio::task::AbortHandle;

use super::{
    case::NotPassed,
    context::Context,
    fifo::Stdin,
    follow::{Follow, follow},
    output::Output,
    requests::stop,
    session::MARK,
};

/// A dyno of a case: what it is started with, and the suite's ends of its standard streams.
#[derive(Debug)]
pub struct Dyno {
    /// What Start is sent.
    pub request: StartRequest,
    /// Its stdout.
    pub stdout: Output,
    /// Its stderr.
    pub stderr: Output,
    /// Its stdin.
    pub stdin: Stdin,
    /// What its Logs go to, until somebody follows them.
    logs: Option<Follow>,
    /// Follows its Logs.
    following: Option<AbortHandle>,
}

impl Dyno {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.request.dyno_id
    }
}

impl Drop for Dyno {
    fn drop(&mut self) {
        if let Some(following) = &self.following {
            following.abort();
        }
    }
}

impl Context {
    /// What Start is sent for a dyno that runs `script`, without FIFOs.
    pub(crate) async fn request(&self, script: &str) -> Result<StartRequest, NotPassed> {
        let env = [
            (MARK, self.session.token.as_str()),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("PORT", "5000"),
        ];
        let dyno_id = self.fresh_id();
        Ok(StartRequest {
            supervisor_id: self.supervisor_id.clone(),
            artifact: self.artifact().await?,
            app: "conformance".to_owned(),
            release: 7,
            process_type: "web".to_owned(),
            process_number: 3,
            argv: self.argv(script, &[]),
            env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            dyno_id,
            ..StartRequest::default()
        })
    }

    /// A dyno that runs `script`, not started yet.
    pub(crate) async fn dyno(&self, script: &str) -> Result<Dyno, NotPassed> {
        let request = self.request(script).await?;
        self.with_stdio(request, true)
    }

    /// Gives `request` FIFOs, where the driver takes them, and its dyno's Logs a reader, where
    /// it does not.
    pub(crate) fn with_stdio(
        &self,
        mut request: StartRequest,
        stdin: bool,
    ) -> Result<Dyno, NotPassed> {
        let id = &request.dyno_id;
        if !self.has(Capability::StdioFifo) {
            let (logs, stdout, stderr) = Follow::new(id);
            return Ok(Dyno {
                request,
                stdout,
                stderr,
                stdin: Stdin::none(),
                logs: self.has(Capability::Logs).then_some(logs),
                following: None,
            });
        }
        let failed = |error| NotPassed::hindered("FIFOs for a dyno", &error);
        let dir = tempfile::Builder::new().prefix("hsup-io-").tempdir();
        let dir = dir.map_err(failed)?;
        let path = dir.path().to_owned();
        // Before anything can fail: without a free descriptor, no folder can be emptied.
        self.keep(dir);
        let stdout = Output::make(&path, "stdout", id).map_err(failed)?;
        let stderr = Output::make(&path, "stderr", id).map_err(failed)?;
        let stdin = if stdin {
            Stdin::make(&path).map_err(failed)?
        } else {
            Stdin::none()
        };
        request.io_dir = path.to_string_lossy().into_owned();
        Ok(Dyno {
            request,
            stdout,
            stderr,
            stdin,
            logs: None,
            following: None,
        })
    }

    /// Starts `dyno`, lets go of the reading end of its stdin, and follows its Logs.
    pub(crate) async fn launch(&self, dyno: &mut Dyno) -> Result<(), NotPassed> {
        self.control().start(dyno.request.clone()).await.ok()?;
        if let Some(logs) = dyno.logs.take() {
            let following = tokio::spawn(follow(self.waits().clone(), dyno.id().to_owned(), logs));
            dyno.following = Some(following.abort_handle());
        }
        let opened = dyno.stdin.started();
        opened.map_err(|error| NotPassed::hindered("the writing end of a stdin", &error))
    }

    /// Starts a dyno that runs `script`.
    pub(crate) async fn start(&self, script: &str) -> Result<Dyno, NotPassed> {
        let mut dyno = self.dyno(script).await?;
        self.launch(&mut dyno).await?;
        Ok(dyno)
    }

    /// Waits of a script for what never comes. Needs nothing but `/bin/sh` where there is a
    /// stdin FIFO; a trap is carried out at once either way.
    pub(crate) fn hold(&self) -> &'static str {
        if self.has(Capability::StdioFifo) {
            "read _"
        } else {
            // Without a FIFO stdin is /dev/null, and ends at once.
            "sleep 1000 & wait $!"
        }
    }

    /// As [`Context::hold`], for a child that has another stdin.
    pub(crate) fn hold_in_background(&self) -> &'static str {
        if self.has(Capability::StdioFifo) {
            "read _ <&2"
        } else {
            "while :; do sleep 1000; done"
        }
    }

    /// Starts a dyno that runs until it is stopped.
    pub(crate) async fn hang(&self) -> Result<Dyno, NotPassed> {
        self.start(self.hold()).await
    }

    /// Starts a dyno that runs `script`, and waits until it has printed `ready`.
    pub(crate) async fn ready(&self, script: &str) -> Result<Dyno, NotPassed> {
        let mut dyno = self.start(script).await?;
        dyno.stdout.expect("ready").await?;
        Ok(dyno)
    }

    /// Starts a dyno that runs `then` once it is [released](Context::release).
    pub(crate) async fn paused(&self, then: &str) -> Result<Dyno, NotPassed> {
        let trap = if self.has(Capability::StdioFifo) {
            ""
        } else {
            "trap : TERM; "
        };
        let hold = self.hold();
        let script = format!("{trap}echo ready; {hold}; {then}");
        self.ready(&script).await
    }

    /// Lets a dyno go on that was [paused](Context::paused).
    pub(crate) fn release(&self, dyno: &mut Dyno) {
        if self.has(Capability::StdioFifo) {
            dyno.stdin.close();
        } else {
            // Its SIGTERM ends the wait; how the dyno ends is for the case to judge.
            tokio::spawn(self.control().stop(stop(dyno.id())));
        }
    }
}
