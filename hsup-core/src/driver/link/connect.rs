//! Connecting to a driver: the connections, the first question, and why there is no answer.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_driver_kit::client::{Capabilities, ConnectError, Connection};
use hsup_proto::driver::{Capability, GetInfoRequest, GetInfoResponse};
use tokio::time::{Instant, timeout};

use super::LinkTask;

/// How long a driver may take to its first answer, from its start or, where others start it,
/// from when it was connected to: it may still be finding its dynos again.
pub(super) const BOOT: Duration = Duration::from_secs(10);

/// What the last try has at least: the answer of a driver that comes up at the last moment must
/// have time to arrive.
pub(super) const LAST_TRY: Duration = Duration::from_millis(100);

/// Pauses that double from 1 ms to 1 s between tries, the last of which begins at the deadline.
pub(super) struct Pauses {
    next: Duration,
    deadline: Instant,
}

impl Pauses {
    pub(super) fn until(deadline: Instant) -> Self {
        Self {
            next: Duration::from_millis(1),
            deadline,
        }
    }

    /// The next pause; `None` when it is too late for another try.
    pub(super) fn next(&mut self, now: Instant) -> Option<Duration> {
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

/// A driver that answered its first question.
pub(super) struct Established {
    pub(super) control: Connection,
    pub(super) waits: Connection,
    pub(super) info: GetInfoResponse,
    pub(super) socket: PathBuf,
}

impl LinkTask {
    /// Connects twice and asks the first question.
    pub(super) async fn handshake(
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
