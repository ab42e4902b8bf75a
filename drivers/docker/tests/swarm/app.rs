//! An app on a swarm: hsup, the driver as a service, and releases as files.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Output},
    rc::Rc,
};

use hsup_tests::{
    binaries,
    deadline::{self, poll, poll_for},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    cluster::{Cluster, PATIENCE, STACK, tail},
    network::Network,
    registry,
    shared::{command, output, signal},
};

const PAGE: &str = "a page of the slug";

/// What the dynos of a release run: something that is reached, and something that is not.
pub(crate) const WEB: &str = "exec httpd -f -p $PORT -h /app";
pub(crate) const WORKER: &str = "exec sleep 100000";

/// An app whose hsup is at the switch. Its dynos end with the swarm, if nobody ends them before.
pub(crate) struct App {
    root: TempDir,
    network: Rc<Network>,
    /// The engine that the driver uses.
    host: String,
    driver: Option<Child>,
    hsup: Option<Child>,
}

impl App {
    /// One whose driver uses the engine of this machine, and that has no release yet.
    pub(crate) fn start(cluster: &Cluster, manager: usize) -> Self {
        let root = TempDir::with_prefix("hsup").unwrap();
        for folder in ["ctl", "rt", "state", "slug", "slug/app"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        let mut app = Self {
            root,
            network: Rc::clone(&cluster.network),
            host: cluster.engines[manager].host(),
            driver: None,
            hsup: None,
        };
        app.write("slug/app/index.html", PAGE);
        app.pack_slug();
        app.start_driver();
        app.start_hsup();
        app
    }

    fn pack_slug(&self) {
        let mut tar = command("tar");
        tar.arg("-C").arg(self.path("slug")).arg("-czf");
        output(tar.arg(self.path("slug.tgz")).arg("./app"));
    }

    /// Has the next release another slug, with this in it.
    pub(crate) fn change_slug(&self, text: &str) {
        self.write("slug/app/another", text);
        self.pack_slug();
    }

    pub(crate) fn start_driver(&mut self) {
        let registry = registry::address();
        let mut driver = self.command("hsup-driver-docker");
        driver.args(["--swarm", "--registry", &registry, "--host", &self.host]);
        driver.arg("--socket").arg(self.path("driver"));
        self.driver = Some(self.spawn(driver, "driver.log"));
    }

    pub(crate) fn start_hsup(&mut self) {
        let mut hsup = self.command("hsup");
        hsup.arg("start")
            .arg("--driver-socket")
            .arg(self.path("driver"));
        hsup.arg("--control-dir").arg(self.path("ctl"));
        // Nobody listens to the end of a dyno for longer.
        hsup.args(["--grace", "10s"]);
        self.hsup = Some(self.spawn(hsup, "hsup.log"));
    }

    fn spawn(&self, mut command: Command, log: &str) -> Child {
        let mut options = File::options();
        let log = options.create(true).append(true).open(self.path(log));
        let log = log.unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        deadline::spawn(&mut command)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.network.command(binaries().join(program));
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path())
            .env("TMPDIR", self.root.path())
            .env("XDG_RUNTIME_DIR", self.path("rt"))
            .env("XDG_STATE_HOME", self.path("state"))
            // Others may have an hsup, too.
            .env("HSUP_CONTROL_SOCKET", self.path("socket"))
            .current_dir("/");
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let mut file = File::create(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Hands in a release that has these process types: what runs, and how often.
    pub(crate) fn release(&self, version: u32, processes: &[(&str, &str, usize)]) {
        self.release_with(version, processes, &json!({}));
    }

    /// The same with these keys besides.
    pub(crate) fn release_with(
        &self,
        version: u32,
        processes: &[(&str, &str, usize)],
        more: &Value,
    ) {
        let processes: Vec<_> = processes
            .iter()
            .map(|(name, line, quantity)| json!({"Type": name, "Args": [line], "Quantity": quantity}))
            .collect();
        let mut release = json!({
            "Version": version,
            "Name": "shop",
            "Slug": format!("file://{}", self.path("slug.tgz").display()),
            "Stack": STACK,
            "Processes": processes,
        });
        for (key, value) in more.as_object().unwrap() {
            release[key] = value.clone();
        }
        self.write("next", &release.to_string());
        fs::rename(self.path("next"), self.path("ctl/new")).unwrap();
    }

    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        super::cluster::within(self.command("hsupctl").args(arguments))
    }

    /// What hsupctl prints that must succeed.
    pub(crate) fn ctl_says(&self, arguments: &[&str]) -> String {
        let found = self.ctl(arguments);
        let said = String::from_utf8_lossy(&found.stderr);
        assert!(
            found.status.success(),
            "{arguments:?}: {said}\n{}",
            self.log()
        );
        String::from_utf8(found.stdout).unwrap()
    }

    /// The dynos as `hsupctl ps -o json` shows them.
    pub(crate) fn dynos(&self) -> Vec<Value> {
        serde_json::from_slice(&self.ctl(&["ps", "-o", "json"]).stdout).unwrap_or_default()
    }

    /// The names and ids of the dynos that are up and ready, of this release.
    pub(crate) fn up(&self, release: u32) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let dynos = self.dynos().into_iter();
        let up = dynos.filter(|dyno| {
            dyno["state"] == "up" && dyno["ready"] == true && dyno["release"] == release
        });
        up.map(|dyno| (text(&dyno["name"]), text(&dyno["dyno_id"])))
            .collect()
    }

    /// Waits until so many dynos of this release are up, and no others are there.
    pub(crate) fn wait_up(&self, release: u32, quantity: usize) -> BTreeMap<String, String> {
        self.wait_for(&format!("{quantity} dynos of v{release}"), || {
            let up = self.up(release);
            (up.len() == quantity && self.dynos().len() == quantity).then_some(up)
        })
    }

    /// Whether hsup's driver is ready, as hsup says.
    pub(crate) fn is_driver_ready(&self) -> bool {
        self.ctl_says(&["driver", "info"]).contains("State: ready")
    }

    /// Waits until hsup or the driver has said this.
    pub(crate) fn wait_line(&self, text: &str) {
        self.wait_for(text, || self.log().contains(text).then_some(()));
    }

    /// Waits until `done`; `what` names it.
    pub(crate) fn wait_for<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        poll_for(PATIENCE, done).unwrap_or_else(|| {
            let dynos = self.ctl(&["ps", "-o", "wide"]);
            let dynos = String::from_utf8_lossy(&dynos.stdout).into_owned();
            panic!("waited in vain for {what}\n{dynos}\n{}", self.log());
        })
    }

    /// What hsup and the driver have said last.
    pub(crate) fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
        let [hsup, driver] = ["hsup.log", "driver.log"].map(read);
        format!(
            "hsup said:\n{}\nthe driver said:\n{}",
            tail(&hsup, 200),
            tail(&driver, 100)
        )
    }

    /// The page that a dyno serves where it is said to be.
    pub(crate) fn page(&self, name: &str) -> bool {
        let dynos = self.dynos();
        let dyno = dynos.iter().find(|dyno| dyno["name"] == name);
        let Some(dyno) = dyno else { return false };
        let (Some(ip), Some(port)) = (dyno["ip"].as_str(), dyno["port"].as_u64()) else {
            return false;
        };
        let mut curl = self.network.command("curl");
        curl.args(["--silent", "--max-time", "5"]);
        let said = curl.arg(format!("http://{ip}:{port}/")).output().unwrap();
        said.stdout == PAGE.as_bytes()
    }

    /// Kills the driver, and starts another one in its place.
    pub(crate) fn replace_driver(&mut self) {
        end(&mut self.driver, Signal::SIGKILL);
        self.start_driver();
    }

    /// Ends hsup as Ctrl-C does, and the driver as a service manager does.
    pub(crate) fn interrupt(mut self) {
        let hsup = self.hsup.as_mut().unwrap();
        signal(hsup, Signal::SIGINT);
        let ended = poll_for(PATIENCE, || hsup.try_wait().unwrap());
        let code = ended.and_then(|status| status.code());
        assert_eq!(code, Some(130), "{}", self.log());
        end(&mut self.driver, Signal::SIGTERM);
    }
}

fn end(child: &mut Option<Child>, how: Signal) {
    let Some(mut child) = child.take() else {
        return;
    };
    signal(&mut child, how);
    if poll(|| child.try_wait().unwrap()).is_none() {
        drop(child.kill());
        drop(child.wait());
    }
}

impl Drop for App {
    fn drop(&mut self) {
        end(&mut self.hsup, Signal::SIGKILL);
        end(&mut self.driver, Signal::SIGKILL);
    }
}
