//! Reaching a driver: the process, the connections, the first question.

use std::{io, path::Path, time::Duration};

use hsup_driver_kit::{
    client::{Capabilities, ConnectError, Connection},
    launch::{self, Child, Launch},
    orphans,
};
use hsup_proto::driver::{Capability, GetInfoRequest, GetInfoResponse};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::{Established, Keeper};
use crate::driver::spec;

/// How long a driver may take to its first answer, from its start or, where others start it,
/// from when it was connected to: it may still be finding its dynos again.
pub(super) const BOOT: Duration = Duration::from_secs(10);

/// What the last try has at least: the answer of a driver that comes up at the last moment must
/// have time to arrive.
const LAST_TRY: Duration = Duration::from_millis(100);

/// Pauses that double from 1 ms to 1 s between tries, the last of which begins at the deadline.
struct Pauses {
    next: Duration,
    deadline: Instant,
}

impl Pauses {
    fn until(deadline: Instant) -> Self {
        Self {
            next: Duration::from_millis(1),
            deadline,
        }
    }

    /// The next pause; `None` when it is too late for another try.
    fn next(&mut self, now: Instant) -> Option<Duration> {
        let pause = self.next.min(self.deadline - now);
        self.next = (self.next * 2).min(Duration::from_secs(1));
        (!pause.is_zero()).then_some(pause)
    }
}

/// Why no driver answers.
pub(super) struct Failure {
    pub(super) why: String,
    pub(super) hopeless: bool,
    /// Nobody listens at its socket.
    pub(super) nobody: bool,
}

impl Failure {
    pub(super) fn passing(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            hopeless: false,
            nobody: false,
        }
    }

    pub(super) fn hopeless(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            hopeless: true,
            nobody: false,
        }
    }
}

impl Keeper {
    pub(super) async fn launch(&mut self, name: &str) -> Result<Established, Failure> {
        let found = spec::find(name, &self.settings.own_program)
            .map_err(|error| Failure::hopeless(error.to_string()))?;
        let launch = Launch {
            program: found.program,
            argv0: found.argv0,
            socket: self.settings.socket.clone(),
            hand_listener: found.takes_listener,
        };
        let child = launch::launch(&launch)
            .map_err(|error| Failure::hopeless(crate::errors::chain(&error)))?;
        info!(pid = child.pid(), "driver started");
        self.note(Some(child.pid()));
        let socket = child.socket().to_owned();
        self.child = Some(child);

        let deadline = Instant::now() + BOOT;
        let mut pauses = Pauses::until(deadline);
        loop {
            let within = LAST_TRY.max(deadline - Instant::now());
            let failure = match self.greet(&socket, within).await {
                Ok(established) => return Ok(established),
                Err(failure) => failure,
            };
            self.reap();
            let is_running = self.child.as_ref().is_some_and(Child::is_running);
            if is_running
                && !failure.hopeless
                && let Some(pause) = pauses.next(Instant::now())
            {
                self.reaping(sleep(pause)).await;
                continue;
            }
            let child = self.child.as_ref().expect("it was just started");
            let why = if !child.is_running() {
                let said = child.last_output().await;
                format!(
                    "the {name} driver ended before it answered ({}){said}",
                    child.how_it_ended()
                )
            } else if failure.hopeless {
                failure.why
            } else {
                let said = child.last_output().await;
                format!(
                    "the {name} driver did not answer within {} s: {}{said}",
                    BOOT.as_secs(),
                    failure.why
                )
            };
            self.give_up_child().await;
            return Err(Failure::hopeless(why));
        }
    }

    /// Ends a child that never became a driver, and whatever it started: it never ran a
    /// dyno, so all of that is nobody's.
    pub(super) async fn give_up_child(&mut self) {
        if self.last.is_none() || self.dynos_end_with_it() {
            orphans::kill_all().await;
        } else {
            // Dynos that outlived the driver before may be ours by now, and are to live.
            self.terminate_child().await;
        }
        if let Some(child) = self.child.take()
            && let Err(error) = std::fs::remove_file(child.socket())
        {
            debug!(%error, "driver socket not removed");
        }
    }

    /// Connects twice and asks the first question.
    pub(super) async fn greet(
        &self,
        socket: &Path,
        within: Duration,
    ) -> Result<Established, Failure> {
        let open = async {
            let control = Connection::open(socket).await?;
            let waits = Connection::open(socket).await?;
            Ok::<_, ConnectError>((control, waits))
        };
        let (control, waits) = match open.await {
            Ok(connections) => connections,
            Err(error @ ConnectError::Stranger { .. }) => {
                return Err(Failure::hopeless(error.to_string()));
            }
            Err(error) => {
                let nobody = matches!(
                    &error,
                    ConnectError::Connect { source, .. } if matches!(
                        source.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    )
                );
                return Err(Failure {
                    why: crate::errors::chain(&error),
                    hopeless: false,
                    nobody,
                });
            }
        };
        let info = match timeout(within, ask(&control)).await {
            Err(_) => {
                return Err(Failure::passing(format!(
                    "the driver at `{}` did not answer GetInfo within {:.0?}",
                    socket.display(),
                    within
                )));
            }
            Ok(Err(status)) => {
                return Err(Failure::passing(format!(
                    "the driver at `{}` answered GetInfo with {:?}: {}",
                    socket.display(),
                    status.code(),
                    status.message()
                )));
            }
            Ok(Ok(info)) => info,
        };
        if !Capabilities::of(&info).has(Capability::StdioFifo) {
            return Err(Failure::hopeless(format!(
                "the driver `{}` does not take its dynos' output to FIFOs (STDIO_FIFO), \
                 the only way that this hsup can read it",
                info.name
            )));
        }
        Ok(Established {
            control,
            waits,
            info,
            socket: socket.to_owned(),
        })
    }
}

pub(super) async fn ask(connection: &Connection) -> Result<GetInfoResponse, tonic::Status> {
    let request = GetInfoRequest {
        supervisor_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer = connection.client().get_info(request).await?;
    Ok(answer.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_comes_up_has_all_the_time_that_it_is_said_to_have() {
        let begun = Instant::now();
        let mut pauses = Pauses::until(begun + BOOT);
        let (mut now, mut tries) = (begun, 1);
        while let Some(pause) = pauses.next(now) {
            now += pause;
            tries += 1;
        }
        assert_eq!(now - begun, BOOT);
        assert!((15..25).contains(&tries), "{tries}");
        assert_eq!(pauses.next(now + BOOT), None);
    }
}
