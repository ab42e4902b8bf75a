//! The commands that change what runs: scale, start, stop, restart, shutdown.

use std::time::Duration;

use hsup_core::{
    formation::{FormationChange, QuantityChange},
    name::ProcessType,
};
use hsup_proto::control::{
    Process, RestartRequest, ScaleRequest, ShutdownRequest, StartRequest, StopRequest,
    scale_request::{Change, change::How},
};
use tonic::{Code, Status};

use super::{Outcome, args::StopArgs, connect::Supervisor, error::CtlError, promptly};

pub async fn scale(mut supervisor: Supervisor, changes: &[String]) -> Result<Outcome, CtlError> {
    let asked = promptly(supervisor.client.scale(ScaleRequest::default())).await;
    let formation = asked?.formation;
    if changes.is_empty() {
        return Ok(Outcome::done(as_arguments(&formation)));
    }
    let changes = parse(changes, &formation)?;
    let request = ScaleRequest {
        changes: changes.iter().map(to_wire).collect(),
    };
    let scaled_to = promptly(supervisor.client.scale(request)).await;
    let formation = scaled_to.map_err(CtlError::about_usage)?.formation;
    Ok(Outcome::done(scaled(&changes, &formation)))
}

/// What `-` means depends on which process types there are.
fn parse(changes: &[String], formation: &[Process]) -> Result<Vec<FormationChange>, CtlError> {
    let known: Vec<ProcessType> = formation
        .iter()
        .filter_map(|process| process.process_type.parse().ok())
        .collect();
    let mut parsed: Vec<FormationChange> = Vec::with_capacity(changes.len());
    for text in changes {
        let change = FormationChange::parse(text, &known)?;
        // Of two quantities neither is the one that is meant.
        if let Some(earlier) = parsed
            .iter()
            .find(|earlier| earlier.process_type == change.process_type)
        {
            return Err(CtlError::Usage(format!(
                "`{}` has two changes, `{earlier}` and `{change}`: give it one",
                change.process_type
            )));
        }
        parsed.push(change);
    }
    Ok(parsed)
}

fn to_wire(change: &FormationChange) -> Change {
    Change {
        process_type: change.process_type.to_string(),
        how: Some(match change.quantity {
            QuantityChange::To(quantity) => How::To(quantity),
            QuantityChange::By(by) => How::By(by),
        }),
    }
}

/// `web=3 worker=1`: what `scale` takes.
fn as_arguments(formation: &[Process]) -> String {
    let words: Vec<_> = formation
        .iter()
        .map(|process| format!("{}={}", process.process_type, process.quantity))
        .collect();
    format!("{}\n", words.join(" "))
}

fn scaled(changes: &[FormationChange], formation: &[Process]) -> String {
    let mentioned = |process: &&Process| {
        let mut types = changes.iter().map(|change| &change.process_type);
        types.any(|process_type| *process_type == process.process_type.as_str())
    };
    let words: Vec<_> = formation
        .iter()
        .filter(mentioned)
        .map(|process| format!("{} at {}", process.process_type, process.quantity))
        .collect();
    format!("Scaling dynos... done, now running {}\n", words.join(", "))
}

fn of_names(status: Status) -> CtlError {
    CtlError::from(status).about_names()
}

/// The error of a call that waits until dynos are up.
fn of_waiting(status: Status) -> CtlError {
    // The code is that of every refusal.
    let is_not_up = status.message().contains(" did not come up: ");
    match status.code() {
        Code::FailedPrecondition if is_not_up => CtlError::NotUp(status.message().to_owned()),
        _ => of_names(status),
    }
}

pub async fn start(
    mut supervisor: Supervisor,
    select: Vec<String>,
    no_wait: bool,
) -> Result<Outcome, CtlError> {
    let request = StartRequest { select, no_wait };
    let started = supervisor.client.start(request).await;
    let dynos = started.map_err(of_waiting)?.into_inner().dynos;
    let end = if no_wait { "" } else { " done" };
    let nothing = "Nothing to start: no dyno was stopped";
    Ok(Outcome::done(told("Starting", &dynos, end, nothing)))
}

pub async fn stop(mut supervisor: Supervisor, args: StopArgs) -> Result<Outcome, CtlError> {
    let request = StopRequest {
        select: args.names,
        grace_ms: args.grace.map(milliseconds),
        force: args.force,
        no_wait: args.no_wait,
    };
    let stopped = supervisor.client.stop(request).await;
    let dynos = stopped.map_err(of_names)?.into_inner().dynos;
    let end = if args.no_wait { "" } else { " done" };
    let nothing = "Nothing to stop: no dyno runs";
    Ok(Outcome::done(told("Stopping", &dynos, end, nothing)))
}

pub async fn restart(
    mut supervisor: Supervisor,
    select: Vec<String>,
    no_wait: bool,
) -> Result<Outcome, CtlError> {
    let nothing = if select.is_empty() {
        "Nothing to restart: no dyno runs, and what was stopped needs `hsupctl start`"
    } else {
        "Nothing to restart: no dyno is wanted there"
    };
    let request = RestartRequest { select, no_wait };
    let restarted = supervisor.client.restart(request).await;
    let dynos = restarted.map_err(of_waiting)?.into_inner().dynos;
    let end = if no_wait { "" } else { " done" };
    Ok(Outcome::done(told("Restarting", &dynos, end, nothing)))
}

pub async fn shutdown(
    mut supervisor: Supervisor,
    grace: Option<Duration>,
) -> Result<Outcome, CtlError> {
    let request = ShutdownRequest {
        grace_ms: grace.map(milliseconds),
    };
    supervisor.client.shutdown(request).await?;
    Ok(Outcome::done(
        "hsup has stopped every dyno and ends\n".to_owned(),
    ))
}

/// For the wire. What is longer than can be said there, 49 days, is as good as for ever.
fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// `Stopping web.1, web.2... done`
fn told(verb: &str, dynos: &[String], end: &str, nothing: &str) -> String {
    if dynos.is_empty() {
        format!("{nothing}\n")
    } else {
        format!("{verb} {}...{end}\n", dynos.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formation() -> Vec<Process> {
        let process = |name: &str, quantity| Process {
            process_type: name.to_owned(),
            quantity,
            command: String::new(),
        };
        vec![process("web", 3), process("worker", 1), process("web-2", 0)]
    }

    fn parsed(texts: &[&str]) -> Vec<FormationChange> {
        let texts: Vec<_> = texts.iter().map(|&text| text.to_owned()).collect();
        parse(&texts, &formation()).unwrap()
    }

    #[test]
    fn a_formation_is_printed_as_arguments() {
        assert_eq!(as_arguments(&formation()), "web=3 worker=1 web-2=0\n");
    }

    #[test]
    fn scaling_tells_of_the_types_that_were_named() {
        let text = scaled(&parsed(&["web=3", "worker+1"]), &formation());
        assert_eq!(
            text,
            "Scaling dynos... done, now running web at 3, worker at 1\n"
        );
    }

    #[test]
    fn a_type_that_is_named_twice_is_wrong_usage() {
        for (changes, said) in [
            (
                ["web=1", "web=3"],
                "`web` has two changes, `web=1` and `web=3`: give it one",
            ),
            (
                ["web+1", "web-1"],
                "`web` has two changes, `web+1` and `web-1`: give it one",
            ),
        ] {
            let error = parse(&changes.map(str::to_owned), &formation()).unwrap_err();
            assert_eq!((error.to_string().as_str(), error.exit_code()), (said, 2));
        }
    }

    #[test]
    fn a_minus_takes_away_unless_it_is_part_of_a_known_name() {
        let hows: Vec<_> = parsed(&["worker-1", "web-2=5"])
            .iter()
            .map(to_wire)
            .map(|change| (change.process_type, change.how.unwrap()))
            .collect();
        let expected = [
            ("worker".to_owned(), How::By(-1)),
            ("web-2".to_owned(), How::To(5)),
        ];
        assert_eq!(hows, expected);
    }

    #[test]
    fn what_changes_is_told_by_name() {
        let dynos = ["web.1", "web.2"].map(str::to_owned);
        assert_eq!(
            told("Stopping", &dynos, " done", ""),
            "Stopping web.1, web.2... done\n"
        );
        assert_eq!(
            told("Stopping", &[], " done", "Nothing to stop"),
            "Nothing to stop\n"
        );
    }
}
