//! `hsupctl version`: of this program, and of the hsup that runs.

use hsup_proto::control::GetStatusRequest;

use super::{
    Outcome,
    connect::{ConnectError, Supervisor},
    error::CtlError,
    promptly,
};

/// That no hsup runs is an answer here, not an error; that several do stays one.
pub async fn run(found: Result<Supervisor, ConnectError>) -> Result<Outcome, CtlError> {
    let server = match found {
        Ok(mut supervisor) => {
            let request = GetStatusRequest::default();
            let version = promptly(supervisor.client.get_status(request))
                .await?
                .hsup_version;
            format!("{version} at {}", supervisor.socket.display())
        }
        Err(ConnectError::NoneRuns { .. }) => "not running".to_owned(),
        Err(error) => return Err(error.into()),
    };
    let client = env!("CARGO_PKG_VERSION");
    Ok(Outcome::done(format!("hsupctl {client}\nhsup {server}\n")))
}
