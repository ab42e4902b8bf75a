//! The registry that all machines get their images from.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::Child,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{
    network::{Network, SWITCH},
    shared::signal,
};

/// A registry at the switch. It ends with the test.
pub(crate) struct Registry {
    child: Child,
    folder: TempDir,
}

impl Registry {
    /// Begins one, which everybody may write to.
    pub(crate) fn begin(network: &Network) -> Self {
        let folder = TempDir::with_prefix("hsup").unwrap();
        let at = |name: &str| folder.path().join(name);
        let config = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{}'}}\n",
            at("data").display(),
            address()
        );
        let mut file = File::create(at("config.yml")).unwrap();
        file.write_all(config.as_bytes()).unwrap();
        Self {
            child: spawn(network, folder.path()),
            folder,
        }
    }

    /// Has it forget all images, as a disk that was lost.
    pub(crate) fn forget(&self) {
        fs::remove_dir_all(self.folder.path().join("data/docker")).unwrap();
    }

    /// The tags of all images of its only app.
    pub(crate) fn tags(&self) -> Vec<String> {
        let apps = self
            .folder
            .path()
            .join("data/docker/registry/v2/repositories/hsup");
        let [app] = &names(&apps)[..] else {
            panic!("more apps than one, or none");
        };
        names(&apps.join(app).join("_manifests/tags"))
    }

    /// Starts it again with the images that it had.
    pub(crate) fn start_again(&mut self, network: &Network) {
        self.child = spawn(network, self.folder.path());
    }

    pub(crate) fn stop(&mut self) {
        signal(&mut self.child, Signal::SIGKILL);
        drop(self.child.wait());
    }
}

fn spawn(network: &Network, folder: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    network
        .command("docker-registry")
        .arg("serve")
        .arg(folder.join("config.yml"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let names = entries.map(name).map(|name| name.into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// As it stands in the names of images.
pub(crate) fn address() -> String {
    format!("{SWITCH}:5000")
}
