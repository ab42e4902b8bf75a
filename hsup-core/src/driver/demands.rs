//! What only some drivers can do, and hsup asks of no other (docs/driver-rules.md §10): a driver
//! that does not know a field would drop it without a word.

use hsup_driver_kit::client::Capabilities;
use hsup_proto::driver::{self, Bind, Capability, GetInfoResponse};
use thiserror::Error;

use crate::release::{Limits, Release};

/// The driver cannot show paths of this machine to dynos.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the {driver} driver cannot show a path of this machine to dynos: leave out --bind, or use \
     a driver that can"
)]
pub struct NoBindsError {
    driver: String,
}

/// Refuses `binds` on a driver that has none.
///
/// # Errors
/// When there are some, and the driver does not say that it has them.
pub fn check_binds(driver: &GetInfoResponse, binds: &[Bind]) -> Result<(), NoBindsError> {
    if binds.is_empty() || Capabilities::of(driver).has(Capability::Binds) {
        return Ok(());
    }
    Err(NoBindsError {
        driver: driver.name.clone(),
    })
}

/// `limits` for a driver that can keep dynos to them.
pub fn limits(driver: &GetInfoResponse, limits: &Limits) -> Option<driver::Limits> {
    if *limits == Limits::default() || !Capabilities::of(driver).has(Capability::Limits) {
        return None;
    }
    Some(driver::Limits {
        memory_bytes: limits.memory_bytes.unwrap_or(0),
        cpu_millis: limits.cpu_millis.unwrap_or(0),
        pids: limits.pids.unwrap_or(0),
    })
}

/// What of `release` the driver cannot do, for people.
pub fn unmet(driver: &GetInfoResponse, release: &Release) -> Option<String> {
    let has_limits = release.limits != Limits::default();
    (has_limits && limits(driver, &release.limits).is_none()).then(|| {
        let (driver, version) = (&driver.name, release.version);
        format!("the {driver} driver sets no limits: those of v{version} have no effect")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(capabilities: &[Capability]) -> GetInfoResponse {
        GetInfoResponse {
            name: "simple".to_owned(),
            capabilities: capabilities.iter().map(|&one| one.into()).collect(),
            ..GetInfoResponse::default()
        }
    }

    #[test]
    fn binds_are_refused_by_name() {
        let binds = [Bind::default()];
        let (bare, able) = (driver(&[]), driver(&[Capability::Binds]));
        assert_eq!(check_binds(&bare, &[]), Ok(()));
        assert_eq!(check_binds(&able, &binds), Ok(()));
        let refused = check_binds(&bare, &binds).unwrap_err().to_string();
        assert!(refused.starts_with("the simple driver cannot"), "{refused}");
    }

    #[test]
    fn limits_reach_a_driver_that_knows_them() {
        let wanted = Limits {
            pids: Some(9),
            ..Limits::default()
        };
        let expected = driver::Limits {
            pids: 9,
            ..driver::Limits::default()
        };
        let able = driver(&[Capability::Limits]);
        assert_eq!(limits(&able, &wanted), Some(expected));
        assert_eq!(limits(&driver(&[]), &wanted), None);
        assert_eq!(limits(&able, &Limits::default()), None);
    }
}
