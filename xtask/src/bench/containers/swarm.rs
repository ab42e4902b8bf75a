//! The docker driver on a Swarm of one node against that Swarm, and what dynos cost its manager.
//!
//! It needs root and the programs `docker`, `dockerd`, `docker-registry`, `ip`, `nsenter` and
//! `busybox`, and is therefore run only when asked for by name. Manager and node are one engine here:
//! what the manager does for many dynos is looked at when they are at rest.

use std::{
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, Uid, sysconf},
};

use super::{
    super::{
        clock::{self, Spread},
        many::{mebibytes, pss_kib},
        procfs,
        report::{Row, say},
    },
    SMALL,
    baselines::Docker,
    driver::{Dynos, PROGRAM, Slug},
    host::{Driver, Host},
    show,
};

/// How many dynos start at once.
const TOGETHER: usize = 20;
/// How many are up when the manager is looked at, and what that row is about.
const MANY: [(usize, &str); 2] = [
    (
        100,
        "100 dynos at rest: the manager's processor, the driver's, its memory",
    ),
    (200, "200 dynos"),
];
/// Between rounds: what has ended is cleared away by engine and kernel.
const PAUSE: Duration = Duration::from_millis(500);
/// A period that holds several of whatever recurs, and the time before it.
const PERIOD: Duration = Duration::from_secs(30);
const CALM: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_mins(10);
const STACK: &str = "heroku/heroku:26";
/// A registry of one's own machine needs no TLS.
const REGISTRY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5000);
const ADDRESS: &str = "10.99.0.1";

/// Measures, each row so many times.
pub(in super::super) fn measure(rounds: usize) -> Result<Vec<Row>> {
    ensure!(
        Uid::effective().is_root(),
        "an engine of its own needs root"
    );
    let host = Host::new()?;
    let engine = Docker::start(host.disk(), host.memory(), &host.stack())?;
    engine.is_stack(STACK)?;
    let registry = Registry::start(&engine, host.disk())?;
    unite(&engine)?;
    let driver = host.swarm_driver(&engine, &REGISTRY.to_string())?;
    let mut dynos = Dynos::connect(&host, &driver)?;
    let artifact = dynos.build(&Slug::make(host.disk(), "small", SMALL)?)?;
    let mut rows = vec![together(&engine, &mut dynos, &artifact, rounds)?];
    rows.extend(at_rest(&host, &engine, driver, &mut dynos, &artifact)?);
    drop(dynos);
    drop(registry);
    Ok(rows)
}

/// Makes the engine a Swarm. What it advertises may not be the loopback.
fn unite(engine: &Docker) -> Result<()> {
    let address = format!("{ADDRESS}/16");
    for words in [
        &["link", "add", "swarm0", "type", "bridge"][..],
        &["address", "add", &address, "dev", "swarm0"],
        &["link", "set", "swarm0", "up"],
    ] {
        let mut ip = engine.in_network("ip");
        ensure!(ip.args(words).status()?.success(), "ip failed");
    }
    // An app's network is to have room for all its dynos.
    let pool = ["--default-addr-pool", "10.128.0.0/9"];
    let mut init = engine.docker();
    init.args(["swarm", "init", "--advertise-addr", ADDRESS]);
    init.args(pool)
        .args(["--default-addr-pool-mask-length", "20"]);
    let made = init.output()?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "docker swarm init failed: {said}");
    Ok(())
}

/// Many at once, until all run, in turns.
fn together(engine: &Docker, dynos: &mut Dynos, artifact: &str, rounds: usize) -> Result<Row> {
    say("measuring twenty dynos");
    let at = artifact.find(&REGISTRY.to_string());
    let image = at.and_then(|at| artifact.get(at..));
    let image = image.with_context(|| format!("there is no image in `{artifact}`"))?;
    let mut taken: [Vec<u64>; 2] = Default::default();
    for _ in 0..rounds {
        sleep(PAUSE);
        let begun = clock::now();
        dynos.start(artifact, TOGETHER, TOGETHER)?;
        taken[0].push(clock::now() - begun);
        dynos.end()?;
        until_running(engine, 0)?;
        sleep(PAUSE);
        taken[1].push(services(engine, image)?);
    }
    let [hsup, docker] = taken.map(Spread::of_nanoseconds);
    Ok(Row {
        what: "20 Starts at once on a Swarm of one node, until all have answered; 20 `docker service create --detach`, until all run",
        hsup: show(hsup),
        baseline: show(docker),
        ratio: Some(hsup.median / docker.median),
        budget: "–",
        met: None,
    })
}

/// Services of the Swarm's own, made at once, until they run.
fn services(engine: &Docker, image: &str) -> Result<u64> {
    let begun = clock::now();
    let mut children = Vec::new();
    for number in 0..TOGETHER {
        let mut create = engine.docker();
        create.args(["service", "create", "--detach", "--quiet"]);
        create.args(["--restart-condition", "none", "--endpoint-mode", "dnsrr"]);
        create.arg(format!("--name=bench-{number}"));
        create.args(["--entrypoint", PROGRAM[0], image, PROGRAM[1]]);
        let child = create.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        children.push(child.context("failed to run docker")?);
    }
    for mut child in children {
        ensure!(child.wait()?.success(), "docker service create failed");
    }
    until_running(engine, TOGETHER)?;
    let taken = clock::now() - begun;
    let mut remove = engine.docker();
    let names = (0..TOGETHER).map(|number| format!("bench-{number}"));
    let removed = remove.args(["service", "rm"]).args(names).output()?;
    ensure!(removed.status.success(), "docker service rm failed");
    until_running(engine, 0)?;
    Ok(taken)
}

/// Waits until just so many containers run.
fn until_running(engine: &Docker, quantity: usize) -> Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        let list = engine.docker().args(["ps", "--quiet"]).output()?;
        let running = String::from_utf8_lossy(&list.stdout).lines().count();
        if running == quantity {
            return Ok(());
        }
        if waited > PATIENCE {
            bail!("{running} containers run and not {quantity}");
        }
        sleep(POLL);
        waited += POLL;
    }
}

/// More and more dynos, and what the manager and the driver do while nothing happens.
fn at_rest(
    host: &Host,
    engine: &Docker,
    driver: Driver<'_>,
    dynos: &mut Dynos,
    artifact: &str,
) -> Result<Vec<Row>> {
    let mut driver = Some(driver);
    let mut rows = Vec::new();
    let mut up = 0;
    for (quantity, what) in MANY {
        say(&format!("measuring {quantity} dynos"));
        let begun = clock::now();
        dynos.start(artifact, quantity - up, super::IN_FLIGHT)?;
        #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
        let rate = (quantity - up) as f64 * 1e9 / (clock::now() - begun) as f64;
        up = quantity;
        let pid = driver.as_ref().context("there is a driver")?.pid();
        let [manager, own] = shares([engine.pid(), pid])?;
        let memory = mebibytes(pss_kib(pid)?);
        // The same without anybody who looks.
        drop(driver.take());
        let [alone, _] = shares([engine.pid(), engine.pid()])?;
        let next = host.swarm_driver(engine, &REGISTRY.to_string())?;
        dynos.reconnect(host, &next)?;
        driver = Some(next);
        rows.push(Row {
            what,
            hsup: format!(
                "{manager:.1} %, {own:.1} %, {memory} MiB; the last ones came {rate:.1} a second"
            ),
            baseline: format!("{alone:.1} % without a driver"),
            ratio: None,
            budget: "–",
            met: None,
        });
    }
    dynos.end()?;
    Ok(rows)
}

/// How much of a processor these processes use, in hundredths.
fn shares(processes: [i32; 2]) -> Result<[f64; 2]> {
    sleep(CALM);
    let before = processes.map(procfs::ticks);
    sleep(PERIOD);
    let after = processes.map(procfs::ticks);
    let second = sysconf(SysconfVar::CLK_TCK)?.context("a machine without ticks")?;
    let mut shares = [0.0; 2];
    for ((share, before), after) in shares.iter_mut().zip(before).zip(after) {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let used =
            (after.zip(before)).map(|(after, before)| (after - before) as f64 / second as f64);
        let used = used.context("a process has ended")?;
        *share = used * 100.0 / PERIOD.as_secs_f64();
    }
    Ok(shares)
}

/// A registry in the engine's network.
#[derive(Debug)]
struct Registry(Child);

impl Registry {
    fn start(engine: &Docker, disk: &Path) -> Result<Self> {
        let config = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{REGISTRY}'}}\n",
            disk.join("registry").display(),
        );
        let path = disk.join("registry.yml");
        File::create(&path)?.write_all(config.as_bytes())?;
        let log = File::create(disk.join("registry.log"))?;
        let mut serve = engine.in_network("docker-registry");
        serve.arg("serve").arg(path).stdin(Stdio::null());
        let child = serve.stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Self(child.context("failed to start docker-registry")?))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        drop(self.0.wait());
    }
}
