//! `IPInfo`: where a dyno listens.

use std::{io, net::IpAddr, time::Duration};

use hsup_proto::driver::{Capability, IpInfoRequest, IpInfoResponse};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use super::super::{
    calls::{Answer, Problem},
    case::{Case, Failure, Need, NotPassed, case, check, check_eq},
    context::Context,
    requests::{ONE_SECOND, code, env},
};

const IP_INFO: &str = "ip info";
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) const CASES: &[Case] = &[
    case!(
        IP_INFO,
        "a running dyno has an address, and its PORT",
        "§6 IPInfoResponse: ip, port; §9: UNAVAILABLE while the address is not assigned yet",
        running
    ),
    case!(
        IP_INFO,
        "what listens on PORT in a dyno is reached there",
        "§13: IPInfo reachable",
        reachable,
        &[Need::Output]
    ),
    case!(
        IP_INFO,
        "a dyno without PORT has no address, or port 0 and a node",
        "§6 IPInfoResponse: port 0 comes with a node alone; §9: wrong state → FAILED_PRECONDITION",
        portless
    ),
    case!(
        IP_INFO,
        "an exited dyno has none",
        "§9: IPInfo after exit → FAILED_PRECONDITION",
        exited
    ),
    case!(
        IP_INFO,
        "an unknown dyno is NOT_FOUND",
        "§9: no such dyno → NOT_FOUND",
        unknown
    ),
];

async fn running(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.hang().await?;
    let info = assigned(cx, dyno.id()).await?;
    let on = format!("IPInfo of {}", dyno.id());
    let parsed = info.ip.parse::<IpAddr>();
    check(parsed.is_ok(), &on, "an IP address", &info.ip)?;
    if info.port == 5000 {
        return Ok(());
    }
    // A published port, where somebody takes connections for the dyno whether it listens or not.
    let taken = connect(&info).await.map(drop);
    let expected = "PORT, or a port that is open";
    let observed = format!("port {}: {taken:?}", info.port);
    check(taken.is_ok(), on, expected, observed)?;
    Ok(())
}

/// The address, once the backend has given one.
pub(super) async fn assigned(cx: &Context, id: &str) -> Result<IpInfoResponse, Failure> {
    settled(cx, id).await?.ok()
}

/// The answer, once it is another than that there is none yet.
async fn settled(cx: &Context, id: &str) -> Result<Answer<IpInfoResponse>, Failure> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let dyno_id = id.to_owned();
        let answer = cx.control().ip_info(IpInfoRequest { dyno_id }).await;
        let answer = answer.within(ONE_SECOND)?;
        match &answer.result {
            Err(Problem::Refused(status))
                if status.code() == Code::Unavailable && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(100)).await;
            }
            _ => return Ok(answer),
        }
    }
}

/// Connects to where a dyno says that it is.
async fn connect(info: &IpInfoResponse) -> io::Result<TcpStream> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let ip: IpAddr = info.ip.parse().map_err(invalid)?;
    let port = u16::try_from(info.port).unwrap_or_default();
    match timeout(PATIENCE, TcpStream::connect((ip, port))).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Listens on PORT and answers with TOKEN; ends with 77 where nothing can, with 78 where PORT
/// is taken.
const LISTEN: &str = r#"
if command -v perl >/dev/null; then exec perl -MSocket -e '
    socket(S, PF_INET, SOCK_STREAM, 0) or exit 77;
    setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
    bind(S, sockaddr_in($ENV{PORT}, INADDR_ANY)) or exit 78;
    listen(S, 5); $| = 1; print "ready\n";
    while (accept(C, S)) { syswrite(C, $ENV{TOKEN}); close(C) }'
elif command -v python3 >/dev/null; then exec python3 -c '
import os, socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try: s.bind(("", int(os.environ["PORT"])))
except OSError: sys.exit(78)
s.listen(5); print("ready", flush=True)
while True:
    c, _ = s.accept(); c.sendall(os.environ["TOKEN"].encode()); c.close()'
fi
exit 77"#;

/// A port that was free a moment ago.
async fn free_port() -> Result<u16, NotPassed> {
    let bound = TcpListener::bind("0.0.0.0:0").await;
    let address = bound.and_then(|listener| listener.local_addr());
    let address = address.map_err(|error| NotPassed::hindered("a free port", &error))?;
    Ok(address.port())
}

async fn reachable(cx: &Context) -> Result<(), NotPassed> {
    let dyno = loop {
        let mut request = cx.request(LISTEN).await?;
        let port = if cx.has(Capability::OwnNetwork) {
            5000
        } else {
            free_port().await?
        };
        let id = request.dyno_id.clone();
        request
            .env
            .extend(env(&[("PORT", &port.to_string()), ("TOKEN", &id)]));
        let mut dyno = cx.with_stdio(request, false)?;
        cx.launch(&mut dyno).await?;
        if dyno.stdout.expect("ready").await.is_ok() {
            break dyno;
        }
        let status = cx.exit(dyno.id()).await?;
        // Somebody else was faster: another port.
        if status.how != Some(code(78)) {
            let reason = "a dyno has neither perl nor python3 to listen with".to_owned();
            check(
                status.how == Some(code(77)),
                "a dyno that listens",
                "ready",
                format_args!("{status:?}"),
            )?;
            return Err(NotPassed::Skipped(reason));
        }
    };
    let info = assigned(cx, dyno.id()).await?;
    let read = async {
        let mut token = String::new();
        let mut stream = connect(&info).await?;
        timeout(PATIENCE, stream.read_to_string(&mut token)).await??;
        Ok::<_, io::Error>(token)
    };
    let on = format!("a connection to {}, port {}", info.ip, info.port);
    let read = read.await.map_err(|error| error.to_string());
    check_eq(on, &read, &Ok(dyno.id().to_owned()))?;
    Ok(())
}

/// A port that the driver knows all the same, from an image, say, is one.
async fn portless(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request(cx.hold()).await?;
    "worker".clone_into(&mut request.process_type);
    request.env.remove("PORT");
    let mut dyno = cx.with_stdio(request, true)?;
    cx.launch(&mut dyno).await?;
    let answer = settled(cx, dyno.id()).await?;
    if let Ok(info) = &answer.result {
        check(
            info.port != 0 || !info.node.is_empty(),
            format_args!("IPInfo of {}, which has no PORT", dyno.id()),
            "FAILED_PRECONDITION, a port, or port 0 and a node",
            format_args!("{info:?}"),
        )?;
        return Ok(());
    }
    answer.refused(&[Code::FailedPrecondition])?;
    Ok(())
}

async fn exited(cx: &Context) -> Result<(), NotPassed> {
    let dyno = cx.start("exit 0").await?;
    cx.exit(dyno.id()).await?;
    let dyno_id = dyno.id().to_owned();
    let answer = cx.control().ip_info(IpInfoRequest { dyno_id }).await;
    answer.refused(&[Code::FailedPrecondition])?;
    Ok(())
}

async fn unknown(cx: &Context) -> Result<(), NotPassed> {
    let dyno_id = cx.fresh_id();
    let answer = cx.control().ip_info(IpInfoRequest { dyno_id }).await;
    answer.within(ONE_SECOND)?.refused(&[Code::NotFound])?;
    Ok(())
}
