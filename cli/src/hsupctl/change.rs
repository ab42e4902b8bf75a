//! The commands that change what runs: `scale`, `start`, `stop`, `restart`, `shutdown`.

use std::io::Write;

use hsup_core::name::{FormationChange, ProcessType, QuantityChange};
use hsup_proto::control::{
    GetStatusRequest, Process, RestartRequest, ScaleRequest, ShutdownRequest, StartRequest,
    StopRequest,
    scale_request::{Change, change::How},
};

use super::{connect::Client, error::CtlError, view};

/// Changes how many dynos run, or prints how many do
///
/// Dynos that stay wanted are not restarted. Without arguments prints a line that `scale` takes
/// again.
#[derive(Clone, Debug, clap::Args)]
pub struct ScaleArgs {
    /// What to change: `web=3`, `worker+1`, `worker-1`
    #[arg(value_name = "TYPE=N")]
    changes: Vec<String>,
}

/// Starts what was stopped
#[derive(Clone, Debug, clap::Args)]
pub struct StartArgs {
    /// Only these process types or dynos, such as `web` or `web.1`
    #[arg(value_name = "NAME")]
    select: Vec<String>,
}

/// Stops dynos and keeps them down until a start, a scaling or a new release
#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    /// Only these process types or dynos, such as `web` or `web.1`
    #[arg(value_name = "NAME")]
    select: Vec<String>,

    /// Kill them at once
    #[arg(long, conflicts_with = "grace")]
    force: bool,

    /// Kill them after so many seconds, whatever hsup was started with
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=4_294_967))]
    grace: Option<u32>,

    /// Do not wait until they are down
    #[arg(long)]
    no_wait: bool,
}

/// Restarts dynos at once, whatever their backoff
#[derive(Clone, Debug, clap::Args)]
pub struct RestartArgs {
    /// Only these process types or dynos, such as `web` or `web.1`
    #[arg(value_name = "NAME")]
    select: Vec<String>,

    /// Do not wait until they are up
    #[arg(long)]
    no_wait: bool,
}

/// Stops every dyno and ends hsup
#[derive(Clone, Debug, clap::Args)]
pub struct ShutdownArgs {
    /// Kill dynos after so many seconds, whatever hsup was started with
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=4_294_967))]
    grace: Option<u32>,
}

/// Says what is being done, does it, and says what came of it, as the Heroku CLI does.
async fn action(
    output: &mut (impl Write + Send),
    what: &str,
    work: impl Future<Output = Result<String, CtlError>> + Send,
) -> Result<(), CtlError> {
    write!(output, "{what}... ")
        .and_then(|()| output.flush())
        .map_err(CtlError::Output)?;
    let result = work.await;
    let outcome = match &result {
        Ok(outcome) => outcome,
        Err(_) => "failed",
    };
    writeln!(output, "{outcome}").map_err(CtlError::Output)?;
    result.map(drop)
}

/// `done, web.1 and web.2`.
fn done(dynos: &[String]) -> String {
    match dynos {
        [] => "done, there was nothing to do".to_owned(),
        [all @ .., last] if !all.is_empty() && dynos.len() <= 10 => {
            format!("done, {} and {last}", all.join(", "))
        }
        [only] => format!("done, {only}"),
        many => format!("done, {} dynos", many.len()),
    }
}

/// What `scale` changes, read with the types there are: `worker-1` could be a type too.
fn changes(texts: &[String], formation: &[Process]) -> Result<Vec<Change>, CtlError> {
    let known: Vec<ProcessType> = formation
        .iter()
        .filter_map(|process| process.process_type.parse().ok())
        .collect();
    let change = |text: &String| {
        let change = FormationChange::parse(text, &known)?;
        Ok(Change {
            process_type: change.process_type.to_string(),
            how: Some(match change.quantity {
                QuantityChange::To(quantity) => How::To(quantity),
                QuantityChange::By(by) => How::By(by),
            }),
        })
    };
    texts.iter().map(change).collect()
}

/// `done, now running web at 3, worker at 1`.
fn scaled(changes: &[Change], formation: &[Process]) -> String {
    let changed = |process: &&Process| {
        changes
            .iter()
            .any(|change| change.process_type == process.process_type)
    };
    let each = |process: &Process| format!("{} at {}", process.process_type, process.quantity);
    let now: Vec<String> = formation.iter().filter(changed).map(each).collect();
    format!("done, now running {}", now.join(", "))
}

impl ScaleArgs {
    /// Changes the formation, or prints it.
    pub async fn run(
        self,
        client: &mut Client,
        output: &mut (impl Write + Send),
    ) -> Result<(), CtlError> {
        let status = client.get_status(GetStatusRequest::default()).await?;
        let formation = status.into_inner().formation;
        if self.changes.is_empty() {
            return writeln!(output, "{}", view::formation(&formation)).map_err(CtlError::Output);
        }
        let changes = changes(&self.changes, &formation)?;
        let work = async {
            let request = ScaleRequest {
                changes: changes.clone(),
            };
            let response = client.scale(request).await?.into_inner();
            Ok(scaled(&changes, &response.formation))
        };
        action(output, "Scaling dynos", work).await
    }
}

impl StartArgs {
    /// Starts dynos.
    pub async fn run(
        self,
        client: &mut Client,
        output: &mut (impl Write + Send),
    ) -> Result<(), CtlError> {
        let request = StartRequest {
            select: self.select,
        };
        let work = async { Ok(done(&client.start(request).await?.into_inner().dynos)) };
        action(output, "Starting dynos", work).await
    }
}

impl StopArgs {
    /// Stops dynos.
    pub async fn run(
        self,
        client: &mut Client,
        output: &mut (impl Write + Send),
    ) -> Result<(), CtlError> {
        let request = StopRequest {
            select: self.select,
            grace_ms: self.grace.map(|seconds| seconds * 1000),
            force: self.force,
            no_wait: self.no_wait,
        };
        let work = async { Ok(done(&client.stop(request).await?.into_inner().dynos)) };
        action(output, "Stopping dynos", work).await
    }
}

impl RestartArgs {
    /// Restarts dynos.
    pub async fn run(
        self,
        client: &mut Client,
        output: &mut (impl Write + Send),
    ) -> Result<(), CtlError> {
        let request = RestartRequest {
            select: self.select,
            no_wait: self.no_wait,
        };
        let work = async { Ok(done(&client.restart(request).await?.into_inner().dynos)) };
        action(output, "Restarting dynos", work).await
    }
}

impl ShutdownArgs {
    /// Ends hsup.
    pub async fn run(
        self,
        client: &mut Client,
        output: &mut (impl Write + Send),
    ) -> Result<(), CtlError> {
        let request = ShutdownRequest {
            grace_ms: self.grace.map(|seconds| seconds * 1000),
        };
        let work = async {
            client.shutdown(request).await?;
            Ok("done".to_owned())
        };
        action(output, "Shutting down", work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formation() -> Vec<Process> {
        [("web", 3), ("worker", 1)]
            .map(|(process_type, quantity)| Process {
                process_type: process_type.to_owned(),
                quantity,
                command: String::new(),
            })
            .to_vec()
    }

    #[test]
    fn changes_are_read_with_the_types_there_are() {
        let texts = ["web=3", "worker+1", "worker-2"].map(str::to_owned);
        let read: Vec<_> = changes(&texts, &formation())
            .unwrap()
            .into_iter()
            .map(|change| (change.process_type, change.how.unwrap()))
            .collect();
        assert_eq!(
            read,
            [
                ("web".to_owned(), How::To(3)),
                ("worker".to_owned(), How::By(1)),
                ("worker".to_owned(), How::By(-2)),
            ]
        );
        let error = changes(&["web=many".to_owned()], &formation()).unwrap_err();
        assert!(error.to_string().contains("`many`"), "{error}");
    }

    #[test]
    fn scaling_answers_as_heroku() {
        let changes = changes(&["web=3".to_owned()], &formation()).unwrap();
        assert_eq!(scaled(&changes, &formation()), "done, now running web at 3");
    }

    #[test]
    fn few_dynos_are_named_and_many_are_counted() {
        let names = |n: usize| (1..=n).map(|n| format!("web.{n}")).collect::<Vec<_>>();
        assert_eq!(done(&names(0)), "done, there was nothing to do");
        assert_eq!(done(&names(1)), "done, web.1");
        assert_eq!(done(&names(3)), "done, web.1, web.2 and web.3");
        assert_eq!(done(&names(11)), "done, 11 dynos");
    }

    #[tokio::test]
    async fn a_failure_ends_its_line() {
        let mut output = Vec::new();
        let failing = async { Err(CtlError::Gone) };
        action(&mut output, "Stopping dynos", failing)
            .await
            .unwrap_err();
        assert_eq!(output, b"Stopping dynos... failed\n");
    }
}
