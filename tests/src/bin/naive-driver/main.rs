//! `naive-driver`: a driver for the tests of the conformance suite, written without the kit.
//!
//! It keeps every rule, in the plainest way that does, and breaks the one that `--fault` names:
//! a case of the suite that passes the good driver and fails the faulty one is worth having.

mod builds;
mod calls;
mod driver;
mod dyno;
mod extras;
mod left;
mod log;
mod serve;
mod terminal;
mod tree;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// What the driver offers besides what every driver must.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Extra {
    /// Logs, in the place of FIFOs.
    Logs,
    Signal,
    Stats,
    Attach,
    OwnNetwork,
    Binds,
    Limits,
}

/// What the driver does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    AddressElsewhere,
    /// Port 0, and no node.
    AddressOfNothing,
    AnswersUnknown,
    ArgvThroughShell,
    BindsAreIgnored,
    BindsAreWritable,
    BuildHangs,
    BuildsDiffer,
    ChmodsAfterBind,
    ClaimsExact,
    CutsAtNul,
    DeclaresSignal,
    /// It is none: drivers may be newer than the suite.
    DeclaresUnknown,
    DiesOfRemove,
    DynosOutliveIt,
    FirstSizeIsIgnored,
    ForgetsLastWords,
    ForgetsRemoved,
    GetInfoBehindBuild,
    GetInfoBehindStart,
    GraceZeroKills,
    HangUpIsIgnored,
    IgnoresLinger,
    IgnoresSigterm,
    Invents137,
    KnowsNoUsers,
    LeaksEnv,
    LeavesGrandchildren,
    LimitsAreIgnored,
    LingerIsNotCancelled,
    ListBehindStop,
    ListLacksState,
    ListenFdsAreIgnored,
    ListenPidIsIgnored,
    LogsAreEmpty,
    LogsDoNotEnd,
    LogsForgetCursor,
    LogsJoinStreams,
    OneAddress,
    OneArtifact,
    OtherRequestOk,
    OutputWriteOnly,
    PrintsEnv,
    QueryInKey,
    RemovesRunning,
    SecondStopIgnored,
    SignalIsExitZero,
    SlugIsKept,
    StaleSocketStays,
    StartDoesNotJoin,
    StartRestarts,
    StdinEofIsIgnored,
    StdinReadWrite,
    StopDoesNotWait,
    StopEndsWithCaller,
    StopHangs,
    StopUnknownNotFound,
    TakesAnyChecksum,
    TakesAnyName,
    TakesAnySocket,
    TakesAnything,
    TakesEndlessNames,
    TakesMissingSlug,
    TakesNoSupervisor,
    TellsEnv,
    WaitAnswersDiffer,
    WaitMissesRemove,
    WaitUnknownUnavailable,
}

/// A driver for the tests of the conformance suite
#[derive(Clone, Debug, Parser)]
#[command(name = "naive-driver")]
struct Args {
    /// Break this rule
    #[arg(long)]
    fault: Option<Fault>,

    /// Offer this as well (can be repeated)
    #[arg(long)]
    with: Vec<Extra>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        // Of this thread: a dyno dies when the thread that started it ends.
        .and_then(|runtime| runtime.block_on(serve::serve(&args)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
