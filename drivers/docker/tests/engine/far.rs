//! An engine on a machine that is reached by `ssh`: for the tests it is this one, with a real sshd.

use std::{
    fs,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use super::{
    fixture::{Driver, Engine, command, output, write},
    ways::runs_a_dyno,
};

const SSHD: &str = "/usr/sbin/sshd";

/// A machine with an engine, and whoever may go there. It ends with the test.
struct Machine {
    folder: TempDir,
    address: SocketAddr,
}

impl Machine {
    async fn of(engine: &Engine) -> Self {
        let folder = TempDir::with_prefix("hsup").unwrap();
        let path = |name: &str| folder.path().join(name);
        for key in ["host", "caller"] {
            let mut keygen = command("ssh-keygen");
            output(
                keygen
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(path(key)),
            );
        }
        fs::copy(path("caller.pub"), path("authorized")).unwrap();
        write(
            &path("sshd_config"),
            &format!(
                "HostKey {host}\nAuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n\
                 PermitRootLogin yes\nPasswordAuthentication no\nPidFile none\n\
                 SetEnv DOCKER_HOST={engine}\n",
                host = path("host").display(),
                authorized = path("authorized").display(),
                engine = engine.host(),
            ),
        );
        // Where sshd keeps those who are not known yet. Its start script makes it.
        fs::create_dir_all("/run/sshd").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (config, log) = (path("sshd_config"), path("sshd.log"));
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                serve(caller, &config, &log);
            }
        });
        Self { folder, address }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn host(&self) -> String {
        format!("ssh://root@{}", self.address)
    }

    /// The variables of a driver whose ssh knows that machine by this key. Which files ssh reads
    /// by itself is in the user database, not in a variable.
    fn known_by(&self, host_key: &str) -> Vec<(&'static str, String)> {
        let key = fs::read_to_string(self.path(host_key)).unwrap();
        let port = self.address.port();
        write(&self.path("known"), &format!("[127.0.0.1]:{port} {key}"));
        write(
            &self.path("ssh_config"),
            &format!(
                "IdentityFile {}\nIdentitiesOnly yes\nUserKnownHostsFile {}\n",
                self.path("caller").display(),
                self.path("known").display()
            ),
        );
        let ssh = self.path("ssh");
        let config = self.path("ssh_config");
        let line = format!(
            "#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n",
            config.display()
        );
        write(&ssh, &line);
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        let before = std::env::var("PATH").unwrap();
        vec![("PATH", format!("{}:{before}", self.folder.path().display()))]
    }
}

/// Has an sshd serve one caller, with whom it ends.
fn serve(caller: TcpStream, config: &Path, log: &Path) {
    let caller = caller.into_std().unwrap();
    caller.set_nonblocking(false).unwrap();
    let caller = OwnedFd::from(caller);
    let mut sshd = command(SSHD)
        .args(["-i", "-E"])
        .arg(log)
        .arg("-f")
        .arg(config)
        .stdin(Stdio::from(caller.try_clone().unwrap()))
        .stdout(Stdio::from(caller))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    tokio::task::spawn_blocking(move || sshd.wait().unwrap());
}

// sshd lets nobody in whose password is locked with a `!`; root's is not on Debian.
#[tokio::test]
#[ignore = "needs root, dockerd and sshd"]
async fn an_engine_over_ssh_runs_dynos() {
    let engine = Engine::start().await;
    let machine = Machine::of(&engine).await;
    let driver = Driver::reaching(&machine.host(), machine.known_by("host.pub"));
    runs_a_dyno(&engine, &driver).await;
}

#[tokio::test]
#[ignore = "needs root, dockerd and sshd"]
async fn a_machine_that_ssh_does_not_know_is_not_gone_to() {
    let engine = Engine::start().await;
    let machine = Machine::of(&engine).await;
    let driver = Driver::reaching(&machine.host(), machine.known_by("caller.pub"));
    let info = driver.info(|info| !info.ready).await;
    let host = machine.host();
    assert_eq!(
        info.message,
        format!("the engine at {host} does not answer: ssh ended: Host key verification failed.")
    );
}
