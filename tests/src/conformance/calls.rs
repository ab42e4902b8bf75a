//! The driver's calls as the cases make them: with a deadline, with a name for the report, and
//! with every answer recorded.

use std::{fmt, time::Duration};

use hsup_driver_kit::client::{Client, Connection};
use hsup_proto::driver::{
    AttachRequest, AttachResponse, BuildRequest, GetInfoRequest, GetInfoResponse, IpInfoRequest,
    IpInfoResponse, ListRequest, ListResponse, LogsRequest, LogsResponse, RemoveRequest,
    RemoveResponse, SignalRequest, SignalResponse, StartRequest, StartResponse, StatsRequest,
    StatsResponse, StopRequest, StopResponse, WaitRequest, WaitResponse, build_response,
    remove_request,
};
use tokio::time::{Instant, timeout};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status, Streaming};

use super::{
    case::{Failure, check},
    record::Record,
};

/// The client deadline of the quick calls.
const QUICK: Duration = Duration::from_secs(5);
/// The client deadline of Start.
const START: Duration = Duration::from_mins(1);
/// The grace that `grace_ms` 0 stands for.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// The longest silence of a Build.
const BUILD_SILENCE: Duration = Duration::from_secs(30);

/// Why a call gave no reply.
#[derive(Clone, Debug)]
pub enum Problem {
    /// The driver answered with an error.
    Refused(Status),
    /// The driver did not answer in time.
    Silent(Duration),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(status) => {
                write!(f, "{} \"{}\"", code_name(status.code()), status.message())
            }
            Self::Silent(after) => write!(f, "no answer within {} s", after.as_secs_f32()),
        }
    }
}

/// What one call came to.
#[derive(Debug)]
pub struct Answer<T> {
    /// The call, for the report.
    pub call: String,
    /// The reply.
    pub result: Result<T, Problem>,
    /// How long it took.
    pub took: Duration,
}

impl<T: fmt::Debug> Answer<T> {
    /// The reply; anything else is a failure.
    pub fn ok(self) -> Result<T, Failure> {
        self.result.map_err(|problem| Failure {
            on: self.call,
            expected: "OK".to_owned(),
            observed: problem.to_string(),
        })
    }

    /// The refusal with one of `codes`; anything else is a failure.
    pub fn refused(self, codes: &[Code]) -> Result<Status, Failure> {
        let observed = match self.result {
            Err(Problem::Refused(status)) if codes.contains(&status.code()) => return Ok(status),
            Err(problem) => problem.to_string(),
            Ok(reply) => format!("OK {reply:?}"),
        };
        let names: Vec<_> = codes.iter().map(|code| code_name(*code)).collect();
        Err(Failure {
            on: self.call,
            expected: names.join(" or "),
            observed,
        })
    }

    /// The answer itself, if it took no longer than `limit`.
    pub fn within(self, limit: Duration) -> Result<Self, Failure> {
        check(
            self.took <= limit,
            &self.call,
            format_args!("an answer within {} s", limit.as_secs_f32()),
            format_args!("{:.3} s", self.took.as_secs_f32()),
        )?;
        Ok(self)
    }
}

/// What a Build streamed.
#[derive(Debug, Default)]
pub struct Built {
    /// Every event, in order.
    pub events: Vec<build_response::Event>,
    /// How many messages had no event this suite knows.
    pub unknown: usize,
}

/// One connection's calls. Cheap to clone; its futures borrow nothing.
#[derive(Clone, Debug)]
pub struct Calls {
    connection: Connection,
    record: Record,
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $reply:ty, $call:literal,
        |$it:ident| $subject:expr, $deadline:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(
            &self,
            request: $request,
        ) -> impl Future<Output = Answer<$reply>> + Send + use<> {
            let $it = &request;
            let call = describe($call, $subject);
            let deadline: Duration = $deadline;
            let mut client = self.client();
            recorded(self.record.clone(), call, deadline, async move {
                client.$name(request).await.map(tonic::Response::into_inner)
            })
        }
    )*};
}

impl Calls {
    pub(crate) const fn new(connection: Connection, record: Record) -> Self {
        Self { connection, record }
    }

    unary! {
        /// `GetInfo`.
        get_info(GetInfoRequest) -> GetInfoResponse, "GetInfo", |_r| "", QUICK;
        /// Start.
        start(StartRequest) -> StartResponse, "Start", |r| &r.dyno_id, START;
        /// Wait, with the deadline that its timeout gives it.
        wait(WaitRequest) -> WaitResponse, "Wait", |r| &r.dyno_id, wait_deadline(r);
        /// `IPInfo`.
        ip_info(IpInfoRequest) -> IpInfoResponse, "IPInfo", |r| &r.dyno_id, QUICK;
        /// List.
        list(ListRequest) -> ListResponse, "List", |_r| "", QUICK;
        /// Remove.
        remove(RemoveRequest) -> RemoveResponse, "Remove", |r| removed(r), QUICK;
        /// Signal.
        signal(SignalRequest) -> SignalResponse, "Signal", |r| &r.dyno_id, QUICK;
        /// Stats.
        stats(StatsRequest) -> StatsResponse, "Stats", |r| &r.dyno_id, QUICK;
    }

    /// The same connection, with what its calls come to noted in another record.
    pub(crate) fn noted_in(&self, record: &Record) -> Self {
        Self {
            connection: self.connection.clone(),
            record: record.clone(),
        }
    }

    /// Stop, with the deadline that its grace gives it.
    pub fn stop(
        &self,
        request: StopRequest,
    ) -> impl Future<Output = Answer<StopResponse>> + Send + use<> {
        let call = describe("Stop", &request.dyno_id);
        let record = self.record.clone();
        let deadline = grace(&request) + record.beyond_grace();
        let mut client = self.client();
        async move {
            let stopped = async { client.stop(request).await.map(tonic::Response::into_inner) };
            let answer = recorded(record.clone(), call, deadline, stopped).await;
            if let Err(Problem::Silent(_)) = answer.result {
                record.a_stop_has_hung();
            }
            answer
        }
    }

    /// Build, to its end.
    pub fn build(
        &self,
        request: BuildRequest,
    ) -> impl Future<Output = Answer<Built>> + Send + use<> {
        let mut client = self.client();
        recorded(
            self.record.clone(),
            "Build".to_owned(),
            BUILD_SILENCE,
            async move {
                let mut stream = client.build(request).await?.into_inner();
                let mut built = Built::default();
                while let Some(message) = stream.message().await? {
                    match message.event {
                        Some(event) => built.events.push(event),
                        None => built.unknown += 1,
                    }
                }
                Ok(built)
            },
        )
    }

    /// Logs; the answer is the stream, once it has begun.
    pub fn logs(
        &self,
        request: LogsRequest,
    ) -> impl Future<Output = Answer<Streaming<LogsResponse>>> + Send + use<> {
        let mut client = self.client();
        let call = describe("Logs", &request.dyno_id);
        recorded(self.record.clone(), call, QUICK, async move {
            client.logs(request).await.map(tonic::Response::into_inner)
        })
    }

    /// Attach; the answer is the stream, once it has begun.
    pub fn attach(
        &self,
        requests: impl Stream<Item = AttachRequest> + Send + 'static,
    ) -> impl Future<Output = Answer<Streaming<AttachResponse>>> + Send {
        let mut client = self.client();
        recorded(
            self.record.clone(),
            "Attach".to_owned(),
            QUICK,
            async move {
                client
                    .attach(requests)
                    .await
                    .map(tonic::Response::into_inner)
            },
        )
    }

    /// The first refusal or message of a stream, for calls that refuse only once it has begun.
    pub(crate) async fn first<T: fmt::Debug + Send + 'static>(
        &self,
        begun: Answer<Streaming<T>>,
    ) -> Answer<Option<T>> {
        match begun.result {
            Ok(mut stream) => {
                recorded(self.record.clone(), begun.call, QUICK, async move {
                    stream.next().await.transpose()
                })
                .await
            }
            Err(problem) => Answer {
                call: begun.call,
                result: Err(problem),
                took: begun.took,
            },
        }
    }

    /// Where it is noted what the calls come to.
    pub(crate) const fn record(&self) -> &Record {
        &self.record
    }

    /// The generated client, for calls that a case means to break off.
    pub(crate) fn client(&self) -> Client {
        self.connection.client()
    }

    /// The process at the other end.
    pub(crate) const fn peer(&self) -> Option<i32> {
        self.connection.pid()
    }

    /// Whether the driver has closed the connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }
}

/// Makes a call with its deadline and notes a refusal.
async fn recorded<T>(
    record: Record,
    call: String,
    deadline: Duration,
    answer: impl Future<Output = Result<T, Status>> + Send,
) -> Answer<T> {
    let begun = Instant::now();
    let result = match timeout(deadline, answer).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(status)) => {
            record.note(&call, &status);
            Err(Problem::Refused(status))
        }
        Err(_) => Err(Problem::Silent(deadline)),
    };
    Answer {
        call,
        result,
        took: begun.elapsed(),
    }
}

/// The name of a gRPC code as the specification spells it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn describe(call: &str, subject: &str) -> String {
    if subject.is_empty() {
        call.to_owned()
    } else {
        format!("{call} of {subject}")
    }
}

fn removed(request: &RemoveRequest) -> &str {
    match &request.what {
        Some(remove_request::What::DynoId(id)) => id,
        Some(remove_request::What::Artifact(_)) => "the artifact",
        None => "nothing",
    }
}

fn grace(request: &StopRequest) -> Duration {
    match (request.force, request.grace_ms) {
        (true, _) => Duration::ZERO,
        (false, 0) => DEFAULT_GRACE,
        (false, grace) => Duration::from_millis(grace.into()),
    }
}

fn wait_deadline(request: &WaitRequest) -> Duration {
    match request.timeout_ms {
        0 => Duration::from_mins(10),
        limit => Duration::from_millis(limit.into()),
    }
    .saturating_add(QUICK)
}
