//! A dyno, wherever it runs.

use hsup_driver_kit::{
    Signal, Status,
    proto::{ExitStatus, IpInfoResponse, StatsResponse},
    service::Dyno,
};

use crate::{dyno::Contained, swarm::Placed, terminal::Remote};

/// On the engine, or on a Swarm of engines. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum AnyDyno {
    Contained(Contained),
    Placed(Placed),
}

impl Dyno for AnyDyno {
    type Terminal = Remote;

    async fn wait(&self) -> ExitStatus {
        match self {
            Self::Contained(dyno) => dyno.wait().await,
            Self::Placed(dyno) => dyno.wait().await,
        }
    }

    async fn signal(&self, signal: Signal) {
        match self {
            Self::Contained(dyno) => dyno.signal(signal).await,
            Self::Placed(dyno) => dyno.signal(signal).await,
        }
    }

    async fn kill(&self) {
        match self {
            Self::Contained(dyno) => dyno.kill().await,
            Self::Placed(dyno) => dyno.kill().await,
        }
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        match self {
            Self::Contained(dyno) => dyno.ip_info(),
            Self::Placed(dyno) => dyno.ip_info(),
        }
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        match self {
            Self::Contained(dyno) => dyno.stats().await,
            Self::Placed(dyno) => dyno.stats().await,
        }
    }

    fn terminal(&self) -> Option<Remote> {
        match self {
            Self::Contained(dyno) => dyno.terminal(),
            Self::Placed(_) => None,
        }
    }

    async fn remove(&self) {
        match self {
            Self::Contained(dyno) => dyno.remove().await,
            Self::Placed(dyno) => dyno.remove().await,
        }
    }
}
