//! When a `web` dyno is ready: its PORT accepts a connection within the boot timeout (R10), and
//! where an operator wants it answers an HTTP GET.
//!
//! Heroku's rule: <https://devcenter.heroku.com/articles/error-codes#r10-boot-timeout>.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hsup_proto::driver::IpInfoRequest;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    check::{HttpCheck, NotReady},
    connect::connect,
};
use crate::{
    driver::{Link, QUICK_WITHIN, said, up},
    errors::chain,
    name::DynoId,
};

/// What became of the watch over a process.
#[derive(Debug)]
pub(super) enum Probed {
    /// It can be reached, or could be once.
    Accepts(Address),
    /// It could not be reached in time; why.
    BootTimeout(String),
    /// It has no port, and has run for a moment.
    Settled,
}

/// Waits until a web dyno, whose PORT is `port`, accepts connections and passes the check, no
/// longer than the boot timeout.
pub(super) async fn probe(
    link: &watch::Receiver<Link>,
    (dyno_id, port): (&DynoId, u16),
    boot_timeout: Duration,
    check: Option<&HttpCheck>,
) -> Probed {
    let deadline = Instant::now() + boot_timeout;
    let seconds = boot_timeout.as_secs_f64();
    let mut trouble = "no answer".to_owned();
    let address = address(link.clone(), dyno_id, &mut trouble);
    let Ok(address) = timeout_at(deadline, address).await else {
        return Probed::BootTimeout(format!(
            "The driver did not tell within {seconds} seconds where the process can be reached: {trouble}"
        ));
    };
    let is_published = address.port != port;
    let accepts = accepts(&address, is_published);
    if timeout_at(deadline, accepts).await.is_err() {
        return Probed::BootTimeout(format!(
            "Error R10 (Boot timeout) -> Web process failed to bind to $PORT within {seconds} seconds of launch"
        ));
    }
    let Some(check) = check else {
        return Probed::Accepts(address);
    };
    let mut trouble = "no answer".to_owned();
    match timeout_at(deadline, passes(&address, check, &mut trouble)).await {
        Ok(()) => Probed::Accepts(address),
        Err(_) => Probed::BootTimeout(format!(
            "Error R10 (Boot timeout) -> Web process did not answer {check} with 2xx or 3xx within {seconds} seconds of launch: {trouble}"
        )),
    }
}

/// Where the driver says that a web dyno can be reached, whenever it says so.
pub(super) async fn locate(link: &watch::Receiver<Link>, dyno_id: &DynoId) -> Address {
    address(link.clone(), dyno_id, &mut String::new()).await
}

/// Where the driver says that the dyno can be reached; `trouble` is why it has not yet.
async fn address(
    mut link: watch::Receiver<Link>,
    dyno_id: &DynoId,
    trouble: &mut String,
) -> Address {
    loop {
        let up = up(&mut link).await;
        let request = IpInfoRequest {
            dyno_id: dyno_id.to_string(),
        };
        match up.call(QUICK_WITHIN, up.client().ip_info(request)).await {
            Ok(answer) => match u16::try_from(answer.port) {
                Ok(port) if port != 0 => {
                    return Address {
                        ip: answer.ip,
                        port,
                    };
                }
                _ => *trouble = format!("port {}", answer.port),
            },
            // UNAVAILABLE means that the address is not assigned yet.
            Err(status) => *trouble = said(&status),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Where a dyno can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// As the driver tells it.
    pub(super) ip: String,
    /// As the driver tells it.
    pub(super) port: u16,
}

/// How long somebody who takes connections for a dyno may take to find that it takes none.
const TURNED_AWAY_WITHIN: Duration = Duration::from_millis(100);

/// Resolves once `address` accepts a connection.
///
/// At a published port somebody else does, whether the dyno does or not (Docker's `docker-proxy`),
/// and ends it at once if not: there it must last.
async fn accepts(address: &Address, is_published: bool) {
    // Most apps take tens of milliseconds or many seconds: look often first, then less.
    let mut pause = Duration::from_millis(5);
    loop {
        let begun = Instant::now();
        for ip in candidates(&address.ip) {
            let attempt = connect(SocketAddr::new(ip, address.port));
            if let Ok(Ok(stream)) = timeout(Duration::from_secs(2), attempt).await
                && (!is_published || lasts(&stream).await)
            {
                return;
            }
        }
        sleep(pause.saturating_sub(begun.elapsed())).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

/// Whether a connection is more than one that is ended at once.
async fn lasts(stream: &TcpStream) -> bool {
    match timeout(TURNED_AWAY_WITHIN, stream.readable()).await {
        Err(_) => true,
        // A dyno that speaks first.
        Ok(Ok(())) => matches!(stream.try_read(&mut [0]), Ok(1)),
        Ok(Err(_)) => false,
    }
}

/// Resolves once `address` passes the check; `trouble` is why it has not yet.
async fn passes(address: &Address, check: &HttpCheck, trouble: &mut String) {
    let mut pause = Duration::from_millis(25);
    loop {
        for ip in candidates(&address.ip) {
            match check.ask(SocketAddr::new(ip, address.port)).await {
                Ok(()) => return,
                // The other one of its addresses is the one that it listens on.
                Err(NotReady::Unreachable(_)) => {}
                Err(error) => *trouble = chain(&error),
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// An app that shares the host's network may listen on the IPv6 loopback only.
fn candidates(ip: &str) -> Vec<IpAddr> {
    let Ok(ip) = ip.parse::<IpAddr>() else {
        return vec![];
    };
    if ip.is_loopback() {
        vec![ip, IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])]
    } else {
        vec![ip]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use hsup_proto::driver::{IpInfoResponse, dyno_driver_server::DynoDriver};
    use tokio::net::TcpSocket;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::driver::fake;

    /// A driver that answers its second call.
    struct Sleepy {
        port: u16,
        asked: AtomicBool,
    }

    #[tonic::async_trait]
    impl DynoDriver for Sleepy {
        async fn ip_info(
            &self,
            _: Request<IpInfoRequest>,
        ) -> Result<Response<IpInfoResponse>, Status> {
            if !self.asked.swap(true, Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(IpInfoResponse {
                ip: "127.0.0.1".to_owned(),
                port: self.port.into(),
                node: String::new(),
            }))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_ip_info_that_is_never_answered_is_asked_again() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = AtomicBool::default();
        let link = fake::link(Sleepy { port, asked }).await;
        let dyno_id = "web-1-abc".parse().unwrap();
        let probed = probe(&link, (&dyno_id, port), Duration::from_mins(1), None).await;
        assert!(matches!(probed, Probed::Accepts(_)), "{probed:?}");
    }

    #[tokio::test]
    async fn a_port_that_opens_late_is_seen() {
        // Bound before anybody listens, so that nobody else is given the port.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let address = Address {
            ip: "127.0.0.1".to_owned(),
            port,
        };
        let ready = tokio::spawn(async move { accepts(&address, false).await });
        tokio::task::yield_now().await;
        assert!(!ready.is_finished());
        let _listener = socket.listen(1).unwrap();
        timeout(Duration::from_secs(10), ready)
            .await
            .expect("never seen")
            .unwrap();
    }

    #[tokio::test]
    async fn who_takes_connections_for_a_dyno_is_not_the_dyno() {
        let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address {
            ip: "127.0.0.1".to_owned(),
            port: proxy.local_addr().unwrap().port(),
        };
        let ready = tokio::spawn(async move { accepts(&address, true).await });
        // The dyno does not listen yet.
        for _ in 0..2 {
            drop(proxy.accept().await.unwrap());
        }
        assert!(!ready.is_finished());
        let _held = proxy.accept().await.unwrap();
        timeout(Duration::from_secs(10), ready)
            .await
            .expect("never seen")
            .unwrap();
    }

    #[test]
    fn loopback_means_both_families() {
        assert_eq!(candidates("127.0.0.1").len(), 2);
        assert_eq!(candidates("172.16.0.30").len(), 1);
        assert!(candidates("").is_empty());
    }
}
