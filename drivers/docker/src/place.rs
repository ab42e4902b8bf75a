//! Where the ports of dynos are published: on the engine's machine, which may be another one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use thiserror::Error;
use tokio::{net::lookup_host, sync::OnceCell};

use crate::{connect, context::Host};

/// At which address of the engine's machine, whatever the way to the engine is.
pub(crate) const VARIABLE: &str = "DOCKER_PUBLISH";

/// The engine's machine, as dynos are reached on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where the engine listens.
    pub(crate) publish: IpAddr,
    /// Where that is reached from here.
    pub(crate) reach: IpAddr,
}

impl Place {
    const fn at(ip: IpAddr) -> Self {
        Self {
            publish: ip,
            reach: ip,
        }
    }

    /// On this machine alone: Docker goes around its firewalls.
    pub(crate) const LOOPBACK: Self = Self::at(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// Of a machine that is reached at this address, which may not be what it calls its own.
    const fn of_machine(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) if v4.is_loopback() => Self::LOOPBACK,
            IpAddr::V6(v6) if v6.is_loopback() => Self::LOOPBACK,
            IpAddr::V4(_) => Self {
                publish: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                reach: ip,
            },
            IpAddr::V6(_) => Self {
                publish: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                reach: ip,
            },
        }
    }

    /// Where a port is reached that the engine says to have published there.
    pub(crate) fn reached(self, published: &str) -> String {
        match published.parse::<IpAddr>() {
            Ok(ip) if !ip.is_unspecified() && ip != self.publish => ip.to_string(),
            _ => self.reach.to_string(),
        }
    }
}

/// It is not known where dynos would be reached.
#[derive(Debug, Error)]
pub(crate) enum PlaceError {
    #[error("{VARIABLE} is `{0}`: it must be an IP address of the engine's machine")]
    Variable(String),
    #[error(
        "the engine's machine `{machine}` has no address that is known here; say where its dynos \
         are reached, with {VARIABLE}"
    )]
    Unknown {
        machine: String,
        #[source]
        source: io::Error,
    },
}

/// The place, which is looked up when the first dyno needs it, unless it was given.
#[derive(Debug)]
pub(crate) struct Places {
    host: Host,
    found: OnceCell<Place>,
}

impl Places {
    /// Those of the engine at `host`, unless the variable says otherwise.
    pub(crate) fn new(
        host: Host,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, PlaceError> {
        let given = variable(VARIABLE).filter(|text| !text.is_empty());
        let given = given.map(|text| match text.parse::<IpAddr>() {
            Ok(ip) if !ip.is_unspecified() => Ok(Place::at(ip)),
            _ => Err(PlaceError::Variable(text)),
        });
        Ok(Self {
            host,
            found: OnceCell::new_with(given.transpose()?),
        })
    }

    /// Where dynos are published and reached. An address that is not found is looked up again.
    pub(crate) async fn find(&self) -> Result<Place, PlaceError> {
        let found = self.found.get_or_try_init(async || self.look_up().await);
        found.await.copied()
    }

    async fn look_up(&self) -> Result<Place, PlaceError> {
        let machine = match &self.host {
            Host::Unix(_) => return Ok(Place::LOOPBACK),
            Host::Tcp(address) | Host::Tls { address, .. } => address.clone(),
            Host::Ssh(ssh) => {
                let name = connect::machine(ssh).await;
                let name = name.map_err(|source| PlaceError::Unknown {
                    machine: ssh.host.clone(),
                    source,
                })?;
                // The port is of no importance, and an address has one.
                match name.parse::<IpAddr>() {
                    Ok(ip) => return Ok(Place::of_machine(ip)),
                    Err(_) => format!("{name}:0"),
                }
            }
        };
        let unknown = |source| PlaceError::Unknown {
            machine: machine.clone(),
            source,
        };
        let mut found = lookup_host(&machine).await.map_err(unknown)?;
        let none = || io::Error::other("its name has no address");
        let first = found.next().ok_or_else(|| unknown(none()))?;
        Ok(Place::of_machine(first.ip()))
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("unix:///run/docker.sock", "127.0.0.1", "127.0.0.1"; "this machine")]
    #[test_case("tcp://127.0.0.1:2375", "127.0.0.1", "127.0.0.1"; "a tunnel, or this machine")]
    #[test_case("tcp://10.1.2.3", "0.0.0.0", "10.1.2.3"; "another one")]
    #[test_case("tcp://[fd00::7]:2375", "::", "fd00::7"; "another one in IPv6")]
    #[tokio::test]
    async fn dynos_are_where_the_engine_is(host: &str, publish: &str, reach: &str) {
        let host = Host::parse(host, None).unwrap();
        let places = Places::new(host, |_| None).unwrap();
        let place = places.find().await.unwrap();
        assert_eq!(place.publish.to_string(), publish);
        assert_eq!(place.reach.to_string(), reach);
        // Who says nothing else has published it where it was asked to.
        for published in ["", publish] {
            assert_eq!(place.reached(published), reach);
        }
        assert_eq!(place.reached("10.9.9.9"), "10.9.9.9");
    }

    #[tokio::test]
    async fn the_variable_goes_before_the_way_to_the_engine() {
        let host = Host::parse("tcp://10.1.2.3", None).unwrap();
        let places = Places::new(host.clone(), |_| Some("172.17.0.1".to_owned()));
        let place = places.unwrap().find().await.unwrap();
        assert_eq!(place, Place::at("172.17.0.1".parse().unwrap()));
        for wrong in ["shop", "0.0.0.0", "10.0.0.1:80"] {
            let error = Places::new(host.clone(), |_| Some(wrong.to_owned()));
            assert!(error.unwrap_err().to_string().contains(wrong));
        }
    }
}
