//! List is the truth about what runs, Remove its only eraser.

use hsup_proto::driver::{Capability, ListRequest, RemoveRequest, State};
use tonic::Code;

use super::super::{
    case::{Case, Need, NotPassed, case, check, check_eq},
    context::Context,
    requests::{ONE_SECOND, code, remove},
};

const LIST: &str = "list and remove";
const FIFO: Need = Need::Has(Capability::StdioFifo);

pub(crate) const CASES: &[Case] = &[
    case!(
        LIST,
        "List has the dynos of one supervisor, or all",
        "§6 ListRequest: supervisor_id, empty means all",
        filtered
    ),
    case!(
        LIST,
        "an exited dyno stays listed, with the status that Wait tells",
        "§6 Dyno: status, when STATE_EXITED; §8 Remove forgets the status",
        exited
    ),
    case!(
        LIST,
        "List answers within 1 s and shows no environment",
        "§8 List: within 1 s; §6 Dyno: small on purpose, no env",
        small
    ),
    case!(
        LIST,
        "a running dyno is not removed",
        "§8 Remove: dyno: running → FAILED_PRECONDITION",
        running
    ),
    case!(
        LIST,
        "an unknown dyno is removed already",
        "§8 Remove: dyno: unknown → OK",
        unknown
    ),
    case!(
        LIST,
        "an exited dyno is removed and gone, twice as well",
        "§8 Remove: frees everything, forgets the status; unknown → OK",
        removed
    ),
    case!(
        LIST,
        "Remove of nothing is INVALID_ARGUMENT",
        "§9: missing field → INVALID_ARGUMENT",
        nothing
    ),
    case!(
        LIST,
        "Remove lets go of the FIFOs",
        "§8 Remove: frees everything",
        freed,
        &[FIFO]
    ),
];

async fn filtered(cx: &Context) -> Result<(), NotPassed> {
    let mine = cx.hang().await?;
    let mut request = cx.request(cx.hold()).await?;
    request.supervisor_id.push_str("-other");
    let other_supervisor = request.supervisor_id.clone();
    let mut other = cx.with_stdio(request, true)?;
    cx.launch(&mut other).await?;
    for (supervisor_id, with_mine, with_other) in [
        (mine.request.supervisor_id.clone(), true, false),
        (other_supervisor, false, true),
        ("nobody".to_owned(), false, false),
        (String::new(), true, true),
    ] {
        let on = format!("List for supervisor {supervisor_id:?}");
        let list = cx
            .control()
            .list(ListRequest { supervisor_id })
            .await
            .ok()?;
        let has = |id: &str| list.dynos.iter().any(|dyno| dyno.dyno_id == id);
        let found = (has(mine.id()), has(other.id()));
        check_eq(on, &found, &(with_mine, with_other))?;
    }
    Ok(())
}

async fn exited(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 17").await?;
    let status = cx.exit(dyno.id()).await?;
    let on = format!("List of {}", dyno.id());
    let listed = cx.listed(dyno.id()).await?;
    let seen = listed.map(|dyno| (dyno.state(), dyno.status));
    check_eq(on, &seen, &Some((State::Exited, Some(status))))?;
    Ok(())
}

async fn small(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 0").await?;
    let secret = format!("secret-{}", cx.session.token);
    request.env.insert("SECRET".to_owned(), secret.clone());
    let mut dyno = cx.with_stdio(request, true)?;
    cx.launch(&mut dyno).await?;
    let list = cx.control().list(cx.own()).await.within(ONE_SECOND)?.ok()?;
    let shown = format!("{list:?}");
    check(
        !shown.contains(&secret),
        "List",
        "nothing of the environment",
        "a value of env",
    )?;
    Ok(())
}

async fn running(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.hang().await?;
    let answer = cx.control().remove(remove(dyno.id())).await;
    answer.refused(&[Code::FailedPrecondition])?;
    cx.check_runs(dyno.id()).await?;
    let listed = cx.listed(dyno.id()).await?.map(|dyno| dyno.state());
    check_eq("List", &listed, &Some(State::Running))?;
    Ok(())
}

async fn unknown(cx: &Context) -> Result<(), NotPassed> {
    let id = cx.fresh_id();
    for _ in 0..2 {
        cx.control().remove(remove(&id)).await.ok()?;
    }
    Ok(())
}

async fn removed(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 0").await?;
    cx.exits(dyno.id(), code(0)).await?;
    for _ in 0..2 {
        cx.control().remove(remove(dyno.id())).await.ok()?;
        check_eq("List", &cx.listed(dyno.id()).await?, &None)?;
    }
    Ok(())
}

async fn nothing(cx: &Context) -> Result<(), NotPassed> {
    let answer = cx.control().remove(RemoveRequest { what: None }).await;
    answer.refused(&[Code::InvalidArgument])?;
    Ok(())
}

async fn freed(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.start("exit 0").await?;
    cx.exits(dyno.id(), code(0)).await?;
    cx.control().remove(remove(dyno.id())).await.ok()?;
    for output in [&mut dyno.stdout, &mut dyno.stderr] {
        output.only_read()?;
        let ended = output.ends_within(ONE_SECOND).await?;
        let expected = "no process that has a FIFO of the dyno open";
        check(ended, "Remove", expected, "one that has")?;
    }
    Ok(())
}
