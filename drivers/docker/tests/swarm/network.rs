//! The switch between the machines, and the cables that lead to it.

use std::process::Command;

use super::shared::{Namespaces, output};

/// Where everybody is, and what is not a machine: the registry, hsup.
pub(crate) const SWITCH: &str = "10.99.0.1";

/// A network that has machines plugged into it.
pub(crate) struct Network(Namespaces);

impl Network {
    pub(crate) fn new() -> Self {
        let network = Self(Namespaces::new());
        network.ip("link add lan type bridge");
        network.ip(&format!("address add {SWITCH}/24 dev lan"));
        network.ip("link set lan up");
        network
    }

    /// A program at the switch.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.0.command(program)
    }

    /// Leads a cable to the machine with this number.
    pub(crate) fn plug(&self, number: usize, machine: &Namespaces) {
        let cable = cable(number);
        let first = &machine.first;
        self.ip(&format!(
            "link add {cable} type veth peer name eth0 netns {first}"
        ));
        self.ip(&format!("link set {cable} master lan up"));
        let address = address(number);
        for words in [
            &format!("address add {address}/24 dev eth0")[..],
            "link set eth0 up",
        ] {
            output(machine.in_network("ip").args(words.split(' ')));
        }
    }

    /// Takes the cable away, if it is there.
    pub(crate) fn unplug(&self, number: usize) {
        let words = ["link", "delete", &cable(number)];
        drop(self.command("ip").args(words).output());
    }

    pub(crate) fn cut(&self, number: usize) {
        self.ip(&format!("link set {} down", cable(number)));
    }

    pub(crate) fn mend(&self, number: usize) {
        self.ip(&format!("link set {} up", cable(number)));
    }

    fn ip(&self, words: &str) {
        // It names machines by their processes.
        output(self.0.in_network("ip").args(words.split(' ')));
    }
}

/// Where the machine with this number is reached.
pub(crate) fn address(number: usize) -> String {
    format!("10.99.0.{}", 10 + number)
}

fn cable(number: usize) -> String {
    format!("cable{number}")
}
