//! Which machine a dyno is on, where its driver has several.
//!
//! That is for people: nothing waits for the answer, and nothing is decided by it. Every dyno is
//! asked about, for those without a port may be elsewhere, too.

use hsup_proto::driver::IpInfoRequest;
use tokio::sync::watch;

use crate::{
    driver::{Link, Pause, QUICK_WITHIN, Verdict, up_again, verdict},
    name::DynoId,
};

/// As the driver names it; `None`: it is the driver's own, or the driver does not tell.
pub(crate) async fn node(mut link: watch::Receiver<Link>, dyno_id: &DynoId) -> Option<String> {
    let mut pause = Pause::new();
    loop {
        let up = up_again(&mut link).await.ok()?;
        let request = IpInfoRequest {
            dyno_id: dyno_id.to_string(),
        };
        match up.call(QUICK_WITHIN, up.client().ip_info(request)).await {
            Ok(answer) => return Some(answer.node).filter(|node| !node.is_empty()),
            Err(status) if verdict(&status, up.is_gone()) == Verdict::Again => pause.wait().await,
            // A dyno without a port has no address, say.
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use hsup_proto::driver::{IpInfoResponse, dyno_driver_server::DynoDriver};
    use test_case::test_case;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::driver::fake;

    /// A driver that does not know where a dyno is before it is asked for the third time.
    struct Scheduler {
        asked: AtomicU32,
        then: fn() -> Result<IpInfoResponse, Status>,
    }

    #[tonic::async_trait]
    impl DynoDriver for Scheduler {
        async fn ip_info(
            &self,
            _: Request<IpInfoRequest>,
        ) -> Result<Response<IpInfoResponse>, Status> {
            if self.asked.fetch_add(1, Ordering::Relaxed) < 2 {
                return Err(Status::unavailable("it is not placed yet"));
            }
            (self.then)().map(Response::new)
        }
    }

    fn on(node: &str) -> IpInfoResponse {
        IpInfoResponse {
            node: node.to_owned(),
            ..IpInfoResponse::default()
        }
    }

    #[test_case(|| Ok(on("one")) => Some("one".to_owned()); "without a port")]
    #[test_case(|| Ok(on("")) => None; "a driver of one machine")]
    #[test_case(|| Err(Status::failed_precondition("it has no PORT")) => None; "no address")]
    #[tokio::test(start_paused = true)]
    async fn a_node_is_asked_for_until_there_is_an_answer(
        then: fn() -> Result<IpInfoResponse, Status>,
    ) -> Option<String> {
        let asked = AtomicU32::default();
        let link = fake::link(Scheduler { asked, then }).await;
        node(link, &"worker-1-abc".parse().unwrap()).await
    }
}
