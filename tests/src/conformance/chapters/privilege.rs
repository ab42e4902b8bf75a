//! The privilege boundary: a driver that runs as root, and a caller that it does not trust.
//!
//! Each case acts as the user of `--as-peer`, whom the driver's command must let in
//! (`--allow-uid`). Of R8 (user, capabilities, seccomp, cgroup and network are the driver's
//! choice) there is nothing to test: no field asks for them.

use std::{
    fs::{self, Permissions},
    io::{self, Read as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
        net::UnixStream,
    },
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hsup_driver_kit::client::Connection;
use hsup_proto::driver::{
    AttachRequest, Bind, BuildRequest, Capability, GetInfoRequest, ListRequest, SignalRequest,
    StartRequest, StatsRequest, attach_request, build_response::Event,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::Code;

use super::{
    super::{
        calls::{Calls, Problem},
        case::{Case, Need, NotPassed, case, check, check_eq},
        context::Context,
        dyno::Dyno,
        requests::{ONE_SECOND, force, remove, remove_artifact, wait_for},
        session::Slug,
    },
    driver_process::{another, left_by},
};
use crate::peer;

/// A word of its own in the verdict of a run with `--as-peer`.
pub(crate) const PRIVILEGE: &str = "privilege boundary";
const PEER_EXEC: &[Need] = &[Need::Peer, Need::Exec];
const PEER_FIFO: &[Need] = &[Need::Peer, Need::Has(Capability::StdioFifo)];
/// How many calls are in flight until one must be refused.
const CALLS: usize = 8_192;
/// How many are made before it is asked whether one is.
const AT_ONCE: usize = 64;
/// What a path, a FIFO or a slug is refused with.
const REFUSED: &[Code] = &[
    Code::PermissionDenied,
    Code::InvalidArgument,
    Code::FailedPrecondition,
    Code::NotFound,
];

pub(crate) const CASES: &[Case] = &[
    case!(
        PRIVILEGE,
        "the socket is for whom the driver serves, and nobody else",
        "§12 R1: with one --allow-uid chown to that uid, 0600; else group of --socket-group, 0660",
        socket,
        PEER_EXEC
    ),
    case!(
        PRIVILEGE,
        "a third user is turned away before HTTP/2",
        "§12 R2: at accept, SO_PEERCRED uid ∈ configured set, else close before HTTP/2",
        third_user,
        PEER_EXEC
    ),
    case!(
        PRIVILEGE,
        "another's dyno is not there",
        "§12 R3: the key of a dyno is (peer uid, dyno_id); others see NOT_FOUND",
        others_dyno,
        PEER_FIFO
    ),
    case!(
        PRIVILEGE,
        "the same dyno_id of two users is two dynos",
        "§12 R3: the key of a dyno is (peer uid, dyno_id)",
        same_id,
        PEER_FIFO
    ),
    case!(
        PRIVILEGE,
        "another's artifact is not there",
        "§12 R3: artifacts belong to a peer uid too; others see NOT_FOUND",
        others_artifact,
        &[Need::Peer, Need::OwnSlug, Need::Has(Capability::StdioFifo)]
    ),
    case!(
        PRIVILEGE,
        "a name that could do harm in a path is refused",
        "§12 R4: dyno_id, supervisor_id, app, process_type, stack, artifact match a strict pattern",
        names,
        PEER_FIFO
    ),
    case!(
        PRIVILEGE,
        "FIFOs that are not the caller's are not opened",
        "§12 R5: no symlinks, directory owned by the peer and not group/other-writable; S_ISFIFO \
         and owner = peer",
        fifos,
        PEER_FIFO
    ),
    case!(
        PRIVILEGE,
        "a slug that the caller may not read is not built",
        "§12 R6: file:// slugs are opened as the peer; no magic links",
        slugs,
        &[Need::Peer, Need::OwnSlug]
    ),
    case!(
        PRIVILEGE,
        "what the driver's own configuration does not name is not bound",
        "§12 R7: binds only under prefixes in the driver's own root-owned config; §9: policy → \
         PERMISSION_DENIED",
        binds,
        &[
            Need::Peer,
            Need::Has(Capability::StdioFifo),
            Need::Has(Capability::Binds)
        ]
    ),
    case!(
        PRIVILEGE,
        "a caller has so many calls in flight, and the others are served",
        "§12 R9: cap in-flight calls per peer; §9: RESOURCE_EXHAUSTED",
        calls_in_flight,
        PEER_FIFO
    ),
];

/// The other user, connected.
struct Peer<'a> {
    cx: &'a Context,
    uid: u32,
    calls: Calls,
    dynos: Mutex<Vec<String>>,
}

/// Has `act` act as the other user, and clears away what that leaves.
async fn as_peer(
    cx: &Context,
    act: impl AsyncFnOnce(&Peer<'_>) -> Result<(), NotPassed>,
) -> Result<(), NotPassed> {
    let uid = uid(cx)?;
    let calls = connect(cx, uid, &cx.driver.socket).await?;
    let peer = Peer {
        cx,
        uid,
        calls,
        dynos: Mutex::default(),
    };
    let acted = act(&peer).await;
    let dynos = std::mem::take(&mut *peer.dynos());
    for id in dynos {
        peer.calls.stop(force(&id)).await.ok()?;
        peer.calls.remove(remove(&id)).await.ok()?;
    }
    acted
}

fn uid(cx: &Context) -> Result<u32, NotPassed> {
    let uid = cx.config().as_peer;
    uid.ok_or_else(|| NotPassed::Skipped("needs --as-peer".to_owned()))
}

async fn connect(cx: &Context, uid: u32, socket: &Path) -> Result<Calls, NotPassed> {
    let on = format!("a connection of uid {uid}");
    let expected = "one that is served (does the driver's command let that user in?)";
    let unreached = |error: io::Error| NotPassed::unreached(&on, expected, &error);
    let stream = peer::connect(uid, socket).map_err(unreached)?;
    stream.set_nonblocking(true).map_err(unreached)?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(unreached)?;
    let connection = Connection::over(stream, None).await;
    let connection = connection.map_err(|error| NotPassed::unreached(&on, expected, &error))?;
    Ok(Calls::new(connection, cx.record().clone()))
}

impl Peer<'_> {
    /// What is to be cleared away.
    fn dynos(&self) -> MutexGuard<'_, Vec<String>> {
        self.dynos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn build(&self, request: BuildRequest) -> Result<String, NotPassed> {
        let built = self.calls.build(request).await.ok()?;
        match built.events.last() {
            Some(Event::Artifact(artifact)) => Ok(artifact.clone()),
            _ => Err(NotPassed::Skipped("no artifact".to_owned())),
        }
    }

    /// What Start is sent for a dyno of the peer's that runs `script`.
    async fn dyno(&self, script: &str) -> Result<Dyno, NotPassed> {
        let mut request = self.cx.request(script).await?;
        if self.cx.config().artifact.is_none() {
            request.artifact = self.build(self.cx.session.build_request()).await?;
        }
        self.dynos().push(request.dyno_id.clone());
        let dyno = self.cx.with_stdio(request, true)?;
        let dir = Path::new(&dyno.request.io_dir);
        for path in ["", "stdin", "stdout", "stderr"].map(|name| dir.join(name)) {
            give(&path, self.uid)?;
        }
        Ok(dyno)
    }

    /// Starts a dyno of the peer's that runs until it is stopped.
    async fn hang(&self) -> Result<Dyno, NotPassed> {
        let mut dyno = self.dyno(self.cx.hold()).await?;
        self.calls.start(dyno.request.clone()).await.ok()?;
        let opened = dyno.stdin.started();
        opened.map_err(|error| NotPassed::hindered("the writing end of a stdin", &error))?;
        Ok(dyno)
    }
}

fn give(path: &Path, uid: u32) -> Result<(), NotPassed> {
    let given = chown(path, Some(uid), Some(peer::group_of(uid)));
    given.map_err(|error| NotPassed::hindered("a file for another user", &error))
}

fn folder() -> Result<TempDir, NotPassed> {
    let made = tempfile::Builder::new().prefix("hsup-peer-").tempdir();
    made.map_err(|error| NotPassed::hindered("a directory", &error))
}

async fn socket(cx: &Context) -> Result<(), NotPassed> {
    let peer = uid(cx)?;
    let driver = another(cx).await?;
    let found = fs::symlink_metadata(&driver.socket);
    let found = found.map_err(|error| NotPassed::hindered("a look at the socket", &error))?;
    let (mode, uid, gid) = (found.mode() & 0o777, found.uid(), found.gid());
    let is_users = (mode, uid) == (0o600, peer);
    let is_groups = (mode, uid) == (0o660, 0) && gid != 0;
    check(
        is_users || is_groups,
        "the socket",
        format_args!("mode 600 and uid {peer}, or mode 660 and a group"),
        format_args!("mode {mode:o}, uid {uid}, gid {gid}"),
    )?;
    let left = left_by(driver.info.durability());
    driver.end(left).await?;
    Ok(())
}

/// Everything that comes until the end of a connection, or a while.
fn hear(mut stream: UnixStream) -> io::Result<usize> {
    stream.set_read_timeout(Some(ONE_SECOND))?;
    match stream.read(&mut [0; 64]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
        heard => heard,
    }
}

async fn third_user(cx: &Context) -> Result<(), NotPassed> {
    let third = uid(cx)? - 1;
    let driver = another(cx).await?;
    // Open the way that the modes of files would bar: the driver asks all the same.
    let mode = Permissions::from_mode(0o666);
    let opened = fs::set_permissions(&driver.socket, mode);
    opened.map_err(|error| NotPassed::hindered("a socket for everybody", &error))?;
    let socket = driver.socket.clone();
    let heard = tokio::task::spawn_blocking(move || hear(peer::connect(third, &socket)?)).await;
    let observed = match &heard {
        Ok(Ok(count)) => format!("{count} bytes"),
        other => format!("{other:?}"),
    };
    let closed = matches!(heard, Ok(Ok(0)));
    let on = format!("a connection of uid {third}");
    check(closed, on, "its end, and not a byte", observed)?;
    connect(cx, uid(cx)?, &driver.socket).await?;
    let left = left_by(driver.info.durability());
    driver.end(left).await?;
    Ok(())
}

async fn others_dyno(cx: &Context) -> Result<(), NotPassed> {
    let ours = cx.hang().await?;
    let id = ours.id();
    as_peer(cx, async |peer| {
        let unknown = &[Code::NotFound];
        let calls = &peer.calls;
        calls.wait(wait_for(id, 1)).await.refused(unknown)?;
        let dyno_id = id.to_owned();
        let ip_info = hsup_proto::driver::IpInfoRequest {
            dyno_id: dyno_id.clone(),
        };
        calls.ip_info(ip_info).await.refused(unknown)?;
        if cx.has(Capability::Signal) {
            let request = SignalRequest {
                dyno_id: dyno_id.clone(),
                signal: "SIGKILL".to_owned(),
            };
            calls.signal(request).await.refused(unknown)?;
        }
        if cx.has(Capability::Stats) {
            let dyno_id = dyno_id.clone();
            let stats = calls.stats(StatsRequest { dyno_id }).await;
            stats.refused(unknown)?;
        }
        if cx.has(Capability::Attach) {
            let event = Some(attach_request::Event::DynoId(dyno_id));
            let begun = calls
                .attach(tokio_stream::once(AttachRequest { event }))
                .await;
            calls.first(begun).await.refused(unknown)?;
        }
        for supervisor_id in [String::new(), cx.supervisor_id.clone()] {
            let list = calls.list(ListRequest { supervisor_id }).await.ok()?;
            let found = list.dynos.iter().any(|dyno| dyno.dyno_id == id);
            check(!found, "List of another user", "its own dynos", "ours")?;
        }
        // As of any that is unknown.
        calls.stop(force(id)).await.ok()?;
        calls.remove(remove(id)).await.ok()?;
        Ok(())
    })
    .await?;
    cx.check_runs(id).await?;
    let listed = cx.listed(id).await?.is_some();
    check(listed, "List", "the dyno that another removed", "none")?;
    Ok(())
}

async fn same_id(cx: &Context) -> Result<(), NotPassed> {
    let ours = cx.hang().await?;
    as_peer(cx, async |peer| {
        let theirs = peer.dyno(cx.hold()).await?;
        let request = StartRequest {
            dyno_id: ours.id().to_owned(),
            ..theirs.request.clone()
        };
        peer.calls.start(request).await.ok()?;
        peer.dynos().push(ours.id().to_owned());
        peer.calls.stop(force(ours.id())).await.ok()?;
        let ended = peer.calls.wait(wait_for(ours.id(), 5000)).await.ok()?;
        let has_ended = ended.status.is_some();
        check(has_ended, "Wait of their dyno", "its end", "one that runs")?;
        Ok(cx.check_runs(ours.id()).await?)
    })
    .await
}

async fn others_artifact(cx: &Context) -> Result<(), NotPassed> {
    let slug = Slug::make().map_err(|error| NotPassed::hindered("a slug", &error))?;
    let mut build = cx.session.build_request();
    if let Some(release) = &mut build.release {
        // Of one release a driver need not keep two.
        release.version += 1;
        release.slug_url = slug.url();
    }
    let built = cx.control().build(build).await.ok()?;
    let Some(Event::Artifact(artifact)) = built.events.last() else {
        return Err(NotPassed::Skipped("no artifact".to_owned()));
    };
    as_peer(cx, async |peer| {
        let mut request = peer.dyno(cx.hold()).await?.request.clone();
        request.artifact.clone_from(artifact);
        let started = peer.calls.start(request).await;
        started.refused(&[Code::NotFound])?;
        let removed = peer.calls.remove(remove_artifact(artifact)).await;
        removed.ok()?;
        Ok(())
    })
    .await?;
    let mut dyno = cx.dyno(cx.hold()).await?;
    dyno.request.artifact.clone_from(artifact);
    cx.launch(&mut dyno).await
}

/// A name in a request.
type Field = fn(&mut StartRequest) -> &mut String;

async fn names(cx: &Context) -> Result<(), NotPassed> {
    let fields: [(&str, Field); 5] = [
        ("dyno_id", |request| &mut request.dyno_id),
        ("supervisor_id", |request| &mut request.supervisor_id),
        ("app", |request| &mut request.app),
        ("process_type", |request| &mut request.process_type),
        ("artifact", |request| &mut request.artifact),
    ];
    as_peer(cx, async |peer| {
        let good = peer.dyno(cx.hold()).await?;
        for (name, field) in fields {
            for bad in ["../up", "a/b", "..", "a\0b", "/etc"] {
                let mut request = good.request.clone();
                bad.clone_into(field(&mut request));
                let mut answer = peer.calls.start(request).await;
                answer.call = format!("Start with the {name} {bad:?}");
                let codes: &[Code] = match name {
                    "artifact" => &[Code::InvalidArgument, Code::NotFound],
                    _ => &[Code::InvalidArgument],
                };
                answer.refused(codes)?;
            }
        }
        let mut build = cx.session.build_request();
        if let Some(release) = &mut build.release {
            "../up".clone_into(&mut release.stack);
        }
        let mut answer = peer.calls.build(build).await;
        "Build with the stack `../up`".clone_into(&mut answer.call);
        answer.refused(&[Code::InvalidArgument, Code::FailedPrecondition])?;
        Ok(())
    })
    .await
}

/// Spoils a folder with FIFOs.
type Trap<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

async fn fifos(cx: &Context) -> Result<(), NotPassed> {
    as_peer(cx, async |peer| {
        let hindered = |error: io::Error| NotPassed::hindered("a trap", &error);
        let root_fifo = folder()?;
        let root_fifo = root_fifo.path().join("fifo");
        mkfifo(&root_fifo, Mode::S_IRUSR).map_err(|errno| hindered(errno.into()))?;
        let replace = |path: &Path| fs::remove_file(path.join("stdout"));
        let traps: [(&str, Trap<'_>); 6] = [
            ("a folder of root's", &|dir| chown(dir, Some(0), Some(0))),
            ("a folder that others may write to", &|dir| {
                fs::set_permissions(dir, Permissions::from_mode(0o777))
            }),
            ("a folder that its group may write to", &|dir| {
                fs::set_permissions(dir, Permissions::from_mode(0o770))
            }),
            ("a FIFO of root's", &|dir| {
                chown(dir.join("stdout"), Some(0), Some(0))
            }),
            ("a link to a FIFO of root's", &|dir| {
                replace(dir)?;
                symlink(&root_fifo, dir.join("stdout"))
            }),
            ("a file in the place of a FIFO", &|dir| {
                replace(dir)?;
                fs::File::create(dir.join("stdout"))?;
                chown(dir.join("stdout"), Some(peer.uid), None)
            }),
        ];
        for (what, trap) in traps {
            let dyno = peer.dyno(cx.hold()).await?;
            trap(Path::new(&dyno.request.io_dir)).map_err(hindered)?;
            let mut answer = peer.calls.start(dyno.request.clone()).await;
            answer.call = format!("Start with {what}");
            answer.refused(REFUSED)?;
        }
        let dyno = peer.dyno(cx.hold()).await?;
        let link = folder()?;
        give(link.path(), peer.uid)?;
        let link = link.path().join("link");
        symlink(&dyno.request.io_dir, &link).map_err(hindered)?;
        let mut request = dyno.request.clone();
        request.io_dir = link.display().to_string();
        let mut answer = peer.calls.start(request).await;
        "Start with a link to its folder".clone_into(&mut answer.call);
        answer.refused(REFUSED)?;
        // And what is theirs is opened.
        peer.hang().await.map(drop)
    })
    .await
}

async fn slugs(cx: &Context) -> Result<(), NotPassed> {
    as_peer(cx, async |peer| {
        let hindered = |error: io::Error| NotPassed::hindered("a slug", &error);
        let (secret, open, theirs) = (
            Slug::make().map_err(hindered)?,
            Slug::make().map_err(hindered)?,
            folder()?,
        );
        let closed = Permissions::from_mode(0o700);
        fs::set_permissions(secret.path(), closed).map_err(hindered)?;
        give(theirs.path(), peer.uid)?;
        let link = theirs.path().join("link");
        symlink(secret.path(), &link).map_err(hindered)?;
        let refused = [
            ("a slug of root's alone", secret.url()),
            (
                "a link to a slug of root's alone",
                format!("file://{}/", link.display()),
            ),
            (
                "a magic link",
                format!("file:///proc/self/root{}/", open.path().display()),
            ),
        ];
        let build = |url: &str| {
            let mut build = cx.session.build_request();
            if let Some(release) = &mut build.release {
                release.version += 1;
                url.clone_into(&mut release.slug_url);
            }
            build
        };
        for (what, url) in refused {
            let mut answer = peer.calls.build(build(&url)).await;
            answer.call = format!("Build of {what}");
            answer.refused(REFUSED)?;
        }
        peer.build(build(&open.url())).await?;
        // One that root could read as well: the suite makes no file that only another may read.
        let private = Slug::make().map_err(hindered)?;
        let closed = Permissions::from_mode(0o700);
        fs::set_permissions(private.path(), closed).map_err(hindered)?;
        give(private.path(), peer.uid)?;
        peer.build(build(&private.url())).await.map(drop)
    })
    .await
}

async fn binds(cx: &Context) -> Result<(), NotPassed> {
    as_peer(cx, async |peer| {
        for host_path in ["/etc", "/", "/proc/self/root"] {
            let mut dyno = peer.dyno(cx.hold()).await?;
            dyno.request.binds.push(Bind {
                host_path: host_path.to_owned(),
                dyno_path: "/mnt".to_owned(),
                writable: true,
            });
            let answer = peer.calls.start(dyno.request.clone()).await;
            answer.refused(&[Code::PermissionDenied])?;
        }
        Ok(())
    })
    .await
}

async fn calls_in_flight(cx: &Context) -> Result<(), NotPassed> {
    as_peer(cx, async |peer| {
        let dyno = peer.hang().await?;
        // A connection of their own: they end with it.
        let waiting = connect(cx, peer.uid, &cx.driver.socket).await?;
        let mut waits = JoinSet::new();
        let mut asked = None;
        while waits.len() < CALLS && asked.is_none() {
            for _ in 0..AT_ONCE {
                waits.spawn(waiting.wait(wait_for(dyno.id(), 60_000)));
            }
            // They are on their way before it.
            let answer = waiting.get_info(GetInfoRequest::default()).await;
            asked = answer.result.err();
        }
        let refused = match &asked {
            Some(Problem::Refused(status)) => status.code() == Code::ResourceExhausted,
            _ => false,
        };
        let observed = match asked {
            Some(problem) => problem.to_string(),
            None => "OK".to_owned(),
        };
        let on = format!("a call of a user with {} in flight", waits.len());
        check(refused, on, "RESOURCE_EXHAUSTED", observed)?;
        let answer = cx.control().get_info(GetInfoRequest::default()).await;
        let info = answer.within(ONE_SECOND)?.ok()?;
        check_eq("GetInfo of another user", &info.ready, &true)?;
        // What is given up is not in flight any more.
        waits.shutdown().await;
        drop(waiting);
        let patience = Instant::now() + Duration::from_secs(10);
        loop {
            let answer = peer.calls.get_info(GetInfoRequest::default()).await;
            if answer.result.is_ok() || Instant::now() >= patience {
                return Ok(answer.ok().map(drop)?);
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}
