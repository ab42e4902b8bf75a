//! When a `web` dyno is ready: its PORT accepts a connection within the boot timeout (R10).
//!
//! Heroku's rule: <https://devcenter.heroku.com/articles/error-codes#r10-boot-timeout>.

use std::{net::IpAddr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// Where a dyno can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// As the driver tells it.
    pub(super) ip: String,
    /// As the driver tells it.
    pub(super) port: u16,
}

/// Resolves once `address` accepts a connection.
pub(super) async fn accepts(address: &Address) {
    // Most apps take tens of milliseconds or many seconds: look often first, then less.
    let mut pause = Duration::from_millis(5);
    loop {
        let begun = Instant::now();
        for ip in candidates(&address.ip) {
            let attempt = TcpStream::connect((ip, address.port));
            if let Ok(Ok(_)) = timeout(Duration::from_secs(2), attempt).await {
                return;
            }
        }
        sleep(pause.saturating_sub(begun.elapsed())).await;
        pause = (pause * 2).min(Duration::from_millis(250));
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
    use super::*;

    #[tokio::test]
    async fn a_port_that_opens_late_is_seen() {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let address = Address {
            ip: "127.0.0.1".to_owned(),
            port,
        };
        let ready = tokio::spawn(async move { accepts(&address).await });
        tokio::task::yield_now().await;
        assert!(!ready.is_finished());
        let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
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
