//! Looks at the machine. Nothing here says whether what it finds is good.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use hsup_core::{
    driver::{DriverSpec, FindDriverError, find},
    errors::chain,
    paths::Paths,
    ports,
    run::{Introduced, introduce},
};
use nix::{
    sys::{
        inotify::{InitFlags, Inotify},
        resource::{RLIM_INFINITY, Resource, getrlimit},
    },
    unistd::{AccessFlags, Group, User as Account, access, geteuid, getgroups},
};

use super::{
    Asked,
    facts::{
        Answer, Cgroups, Driver, Facts, Health, Kernel, Layout, Limits, NAMESPACES, Stacks, Unread,
        User,
    },
    listeners::Listeners,
    presence::Sources,
};

/// What the package installs, where distributions have it.
const PACKAGED_UNITS: [&str; 2] = [
    "/usr/lib/systemd/system/hsup-driver-libcontainer.socket",
    "/lib/systemd/system/hsup-driver-libcontainer.socket",
];
/// How far the first ports of two process types are apart.
const STRIDE: u16 = 100;

/// What came of looking.
pub(super) enum Seen {
    Facts(Box<Facts>),
    /// hsup is to end, with this code.
    Ended(u8),
}

/// Looks at everything, and asks these drivers.
pub(super) async fn look(asked: Vec<Asked>, first_port: u16, own_program: &Path) -> Seen {
    let mut drivers = Vec::new();
    for asked in asked {
        let health = match health(&asked.spec, own_program).await {
            Ok(health) => health,
            Err(code) => return Seen::Ended(code),
        };
        drivers.push(Driver {
            kind: asked.kind(&health),
            name: asked.name,
            way: asked.way,
            health,
        });
    }
    let paths = Paths::from_env();
    Seen::Facts(Box::new(Facts {
        kernel: kernel(),
        cgroups: cgroups(),
        user: user(),
        runtime_dir: paths.runtime_dir().map_err(|error| chain(&error)),
        control_sockets: control_sockets(&paths),
        drivers,
        packaged: PACKAGED_UNITS.iter().any(|unit| Path::new(unit).exists()),
        stacks: stacks(),
        limits: limits(),
        // The first dynos of the first two process types.
        ports: [Some(first_port), first_port.checked_add(STRIDE)]
            .into_iter()
            .flatten()
            .map(|port| (port, ports::state(port)))
            .collect(),
    }))
}

/// What is not there is empty, as what may not be read.
fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn kernel() -> Kernel {
    let release = text("/proc/sys/kernel/osrelease").trim().to_owned();
    let modules = Path::new("/lib/modules").join(&release);
    let sources = Sources {
        config: config(&release),
        builtin: text(modules.join("modules.builtin")),
        modules: text(modules.join("modules.dep")),
    };
    let in_sys = |module: &str| Path::new("/sys/module").join(module).exists();
    let file_systems = words(&text("/proc/filesystems"));
    // One by one: hsup keeps its memory to itself, and so only root may list this folder.
    let is_there = |kind: &&str| Path::new("/proc/self/ns").join(kind).is_symlink();
    Kernel {
        namespaces: NAMESPACES.into_iter().filter(is_there).collect(),
        seccomp: words(&text("/proc/sys/kernel/seccomp/actions_avail")),
        overlay: sources.presence("overlay", "OVERLAY_FS", file_systems.contains("overlay")),
        nf_tables: sources.presence("nf_tables", "NF_TABLES", in_sys("nf_tables")),
        veth: sources.presence("veth", "VETH", in_sys("veth")),
        ipvlan: sources.presence("ipvlan", "IPVLAN", in_sys("ipvlan")),
        release,
    }
}

fn config(release: &str) -> String {
    let mut config = String::new();
    let packed = File::open("/proc/config.gz");
    match packed.and_then(|file| GzDecoder::new(file).read_to_string(&mut config)) {
        Ok(_) => config,
        Err(_) => text(Path::new("/boot").join(format!("config-{release}"))),
    }
}

fn cgroups() -> Cgroups {
    let mounts = text("/proc/self/mounts");
    let mounted: Vec<(&str, &str, &str)> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .filter(|(_, kind, _)| kind.starts_with("cgroup"))
        .collect();
    let unified = mounted.iter().find(|(_, kind, _)| *kind == "cgroup2");
    let legacy: BTreeSet<String> = mounted
        .iter()
        .filter(|(_, kind, _)| *kind == "cgroup")
        .flat_map(|(_, _, options)| options.split(','))
        .map(str::to_owned)
        .collect();
    let mut controllers = unified
        .map(|(place, _, _)| words(&text(Path::new(place).join("cgroup.controllers"))))
        .unwrap_or_default();
    let layout = match (unified, legacy.is_empty()) {
        (None, true) => Layout::None,
        (None, false) => Layout::Legacy,
        (Some(_), false) => Layout::Hybrid,
        (Some(_), true) => Layout::Unified,
    };
    controllers.extend(legacy);
    let own: Option<PathBuf> = unified.and_then(|(place, _, _)| {
        let shown = text("/proc/self/cgroup");
        let shown = shown.lines().find_map(|line| line.strip_prefix("0::/"))?;
        // Without a slash at its end.
        Some(Path::new(place).join(shown).components().collect())
    });
    Cgroups {
        layout,
        controllers,
        writable: own
            .as_deref()
            .is_some_and(|path| access(path, AccessFlags::W_OK).is_ok()),
        own,
    }
}

fn user() -> User {
    let uid = geteuid();
    let account = Account::from_uid(uid).ok().flatten();
    let groups = getgroups().unwrap_or_default();
    User {
        uid: uid.as_raw(),
        name: account.map(|account| account.name).unwrap_or_default(),
        groups: groups
            .into_iter()
            .map(|gid| match Group::from_gid(gid) {
                Ok(Some(group)) => group.name,
                _ => gid.to_string(),
            })
            .collect(),
    }
}

fn control_sockets(paths: &Paths) -> Vec<(PathBuf, Answer)> {
    let sockets = paths.find_sockets().into_iter();
    let table = text("/proc/net/unix");
    let listeners = Listeners::new(&table);
    let asked = sockets.filter_map(|path| {
        let forbidden = || Answer::Forbidden(crate::access::advice(&path));
        if listeners.are_at(&path) {
            let may = access(&path, AccessFlags::W_OK).is_ok();
            let answer = if may { Answer::Listens } else { forbidden() };
            return Some((path, answer));
        }
        // Nobody does, or somebody in another network namespace.
        let answer = match UnixStream::connect(&path) {
            Ok(_) => Answer::Listens,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => forbidden(),
            // It went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => Answer::LeftBehind,
        };
        Some((path, answer))
    });
    asked.collect()
}

/// The error is the code that hsup is to end with.
async fn health(spec: &DriverSpec, own_program: &Path) -> Result<Health, u8> {
    if let DriverSpec::Child(name) = spec {
        match find(name, own_program) {
            Err(FindDriverError::NotInstalled { .. }) => return Ok(Health::NotInstalled),
            Err(error) => return Ok(Health::Unknown(error.to_string())),
            Ok(_) => {}
        }
    }
    match introduce(spec.clone(), own_program.to_owned()).await {
        Ok(Introduced::Driver(driver)) => Ok(Health::Answers(driver)),
        Ok(Introduced::Silent(why)) => Ok(Health::Silent(why)),
        Ok(Introduced::Ended(code)) => Err(code),
        Err(error) => Ok(Health::Silent(chain(&error))),
    }
}

fn stacks() -> Stacks {
    let work_dir = env::var_os("LIBCONTAINER_WORK_DIR").filter(|path| !path.is_empty());
    let folder = work_dir
        .map_or_else(|| "/var/lib/hsup".into(), PathBuf::from)
        .join("stacks");
    let read = |folder: &Path| -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let name = name.strip_suffix(".img").unwrap_or(&name);
            // The others are the list, and what is being fetched.
            if name.contains('-') && !name.starts_with('.') && !name.contains(".yml") {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    };
    Stacks {
        names: read(&folder).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unread::Missing,
            io::ErrorKind::PermissionDenied => Unread::Forbidden,
            _ => Unread::Failed(error.to_string()),
        }),
        manifest: folder.join("manifest.yml").exists(),
        folder,
    }
}

fn limits() -> Limits {
    let hard = |resource| getrlimit(resource).map_or(RLIM_INFINITY, |(_, hard)| hard);
    let processes = hard(Resource::RLIMIT_NPROC);
    Limits {
        open_files: hard(Resource::RLIMIT_NOFILE),
        processes: (processes != RLIM_INFINITY).then_some(processes),
        inotify: match Inotify::init(InitFlags::IN_CLOEXEC) {
            Ok(_) => Ok(()),
            Err(errno) => Err(format!("directories cannot be watched: {errno}")),
        },
    }
}
