//! Three machines that are a swarm, and what may happen to them.

use std::{
    fs,
    process::{Command, Output},
    rc::Rc,
    time::Duration,
};

use hsup_tests::deadline::{self, poll_for};

use super::{
    network::{Network, address},
    registry::{self, Registry},
    shared::{Engine, Namespaces, output},
    watch::{Dyno, Watch, running},
};

/// How long anything may take that a swarm does by and by, and for dozens of dynos.
pub(crate) const PATIENCE: Duration = Duration::from_mins(5);
/// What dynos run on, as releases name it.
pub(crate) const STACK: &str = "heroku-26";
const STACK_IMAGE: &str = "heroku/heroku:26";
/// hsup runs a line by bash.
const BASH: &str = "#!/bin/sh\nexec /bin/sh \"$@\"\n";

/// How many machines there are, counted from 0.
pub(crate) const MACHINES: usize = 3;

/// A swarm. Nothing of it is left when it is dropped.
pub(crate) struct Cluster {
    pub(crate) engines: Vec<Engine>,
    pub(crate) registry: Registry,
    pub(crate) network: Rc<Network>,
}

impl Cluster {
    /// Makes one of three machines, of which so many are managers, which have the stack. The first
    /// is their leader.
    pub(crate) fn start(managers: usize) -> Self {
        let network = Rc::new(Network::new());
        let registry = Registry::begin(&network);
        let machines = (0..MACHINES).map(|number| {
            let insecure = format!("--insecure-registry={}", registry::address());
            Engine::begin(machine(&network, number), vec![insecure])
        });
        let cluster = Self {
            engines: machines.collect(),
            registry,
            network,
        };
        for number in 0..MACHINES {
            cluster.answers(number);
        }
        cluster.unite(managers);
        for manager in &cluster.engines[..managers] {
            manager.import(STACK_IMAGE, bash, &[]);
        }
        cluster
    }

    fn unite(&self, managers: usize) {
        let first = address(0);
        self.says(0, &["swarm", "init", "--advertise-addr", &first]);
        let door = format!("{first}:2377");
        for number in 1..MACHINES {
            let role = if number < managers {
                "manager"
            } else {
                "worker"
            };
            let token = self.says(0, &["swarm", "join-token", "--quiet", role]);
            let own = address(number);
            let join = ["swarm", "join", "--token", &token, "--advertise-addr", &own];
            let mut docker = self.engines[number].docker(&join);
            output(docker.arg(&door));
        }
        self.wait_for("all machines in the swarm", || {
            (self.states(0)? == ["ready"; MACHINES]).then_some(())
        });
    }

    /// What a command prints that must succeed on this machine's engine.
    pub(crate) fn says(&self, number: usize, args: &[&str]) -> String {
        output(&mut self.engines[number].docker(args))
    }

    /// The same where it may fail, or the engine not answer.
    pub(crate) fn try_says(&self, number: usize, args: &[&str]) -> Option<String> {
        let Output { status, stdout, .. } =
            deadline::try_output(&mut self.engines[number].docker(args)).ok()?;
        let text = String::from_utf8_lossy(&stdout).trim().to_owned();
        status.success().then_some(text)
    }

    /// How the machines are, as this one says, in their order.
    pub(crate) fn states(&self, asked: usize) -> Option<Vec<String>> {
        let format = "{{.Hostname}} {{.Status}}";
        let listed = self.try_says(asked, &["node", "ls", "--format", format])?;
        let mut states: Vec<_> = listed.lines().map(str::to_lowercase).collect();
        states.sort();
        let state = |line: String| line.split(' ').next_back().map(str::to_owned);
        states.into_iter().map(state).collect()
    }

    /// Waits until a machine is `ready`, or `down`, as another one says.
    pub(crate) fn wait_state(&self, asked: usize, number: usize, state: &str) {
        self.wait_for(&format!("{} {state}", name(number)), || {
            (self.states(asked)?.get(number)? == state).then_some(())
        });
    }

    /// Gives a machine more dynos, or none: `active`, `drain`.
    pub(crate) fn make(&self, asked: usize, number: usize, availability: &str) {
        let name = name(number);
        self.says(
            asked,
            &["node", "update", "--availability", availability, &name],
        );
    }

    /// Which machine leads, as this one says.
    pub(crate) fn leader(&self, asked: usize) -> Option<String> {
        let format = "{{.Hostname}} {{.ManagerStatus}}";
        let listed = self.try_says(asked, &["node", "ls", "--format", format])?;
        let mut lines = listed.lines();
        lines.find_map(|line| line.strip_suffix(" Leader").map(str::to_owned))
    }

    /// The services that there are.
    pub(crate) fn services(&self, asked: usize) -> Option<String> {
        self.try_says(asked, &["service", "ls", "--quiet"])
    }

    /// The dynos that run on this machine.
    pub(crate) fn running(&self, number: usize) -> Vec<Dyno> {
        running(&self.engines[number].socket()).unwrap_or_default()
    }

    /// How many dynos run on each machine.
    pub(crate) fn spread(&self) -> [usize; MACHINES] {
        std::array::from_fn(|number| self.running(number).len())
    }

    /// Begins to look whether any dyno has a twin.
    pub(crate) fn watch(&self) -> Watch {
        Watch::begin(self.engines.iter().map(Engine::socket).collect())
    }

    /// Waits until the engine of this machine answers.
    pub(crate) fn answers(&self, number: usize) {
        let engine = &self.engines[number];
        let up = poll_for(PATIENCE, || engine.is_up().then_some(()));
        up.unwrap_or_else(|| panic!("dockerd does not serve; it said:\n{}", engine.log()));
    }

    /// Ends a machine's engine as the kernel does. Its containers run on.
    pub(crate) fn kill(&mut self, number: usize) {
        self.engines[number].kill();
    }

    /// Starts the engine of a machine again.
    pub(crate) fn start_again(&mut self, number: usize) {
        self.engines[number].start_again();
        self.answers(number);
    }

    /// Switches a machine off.
    pub(crate) fn switch_off(&mut self, number: usize) {
        let engine = &mut self.engines[number];
        engine.namespaces.end();
        // The kernel takes its time with a network that nobody uses any more.
        self.network.unplug(number);
    }

    /// Switches it on again, with what is on its disk.
    pub(crate) fn switch_on(&mut self, number: usize) {
        let engine = &mut self.engines[number];
        engine.namespaces = machine(&self.network, number);
        // What is there is on a disk in memory, elsewhere.
        fs::remove_dir_all(engine.dir.path().join("exec")).unwrap();
        self.start_again(number);
    }

    /// Waits until `done`; `what` names it.
    pub(crate) fn wait_for<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        poll_for(PATIENCE, done).unwrap_or_else(|| {
            let logs = self.engines.iter().map(|engine| tail(&engine.log(), 30));
            let logs: Vec<_> = logs.collect();
            panic!(
                "waited in vain for {what}; the engines said:\n{}",
                logs.join("\n\n")
            );
        })
    }
}

/// How the machine with this number is called.
pub(crate) fn name(number: usize) -> String {
    format!("machine-{number}")
}

/// A machine with a name and a cable.
fn machine(network: &Network, number: usize) -> Namespaces {
    let machine = Namespaces::new();
    output(machine.command("hostname").arg(name(number)));
    network.plug(number, &machine);
    machine
}

fn bash(root: &std::path::Path) {
    use std::{io::Write as _, os::unix::fs::PermissionsExt as _};
    let path = root.join("bin/bash");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(BASH.as_bytes()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A command that is ended with the test's patience.
pub(crate) fn within(command: &mut Command) -> Output {
    deadline::output_within(PATIENCE, command)
}
