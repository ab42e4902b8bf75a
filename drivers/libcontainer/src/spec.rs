//! What libcontainer is asked for: the OCI runtime specification of one dyno.
//!
//! Pure. Every field that has a default in `oci-spec` is set here, because those defaults are not
//! what a dyno may have: ambient capabilities, 1024 open files, no rule for devices.
//! (<https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md>)

use std::path::{Path, PathBuf};

use libcontainer::oci_spec::{
    OciSpecError,
    runtime::{
        Capabilities, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
        LinuxDeviceCgroupBuilder, LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder,
        LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount,
        MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder,
        RootBuilder, Spec, SpecBuilder, UserBuilder,
    },
};
use serde::{Deserialize, Serialize};

use crate::binds::Bind;

/// How many descriptors a process of a dyno may open, as on Heroku.
const OPEN_FILES: u64 = 10_000;
/// How much of the host's memory `/dev/shm` may take; it counts as the dyno's own.
const SHM: &str = "size=64m";
/// The period of a CPU limit, in microseconds: the kernel's own.
const CPU_PERIOD: u64 = 100_000;
/// The least that a limit on CPU time can be, in thousandths of one: the kernel takes no quota of
/// less than a millisecond. (`min_cfs_quota_period`)
pub(crate) const LEAST_CPU_MILLIS: u32 = 10;
/// What counts as a dyno's besides what is its own: hsup-init and, while it starts,
/// libcontainer's own process.
const BESIDES: u32 = 2;
/// The most that a limit on processes can be: the kernel has no more numbers for them.
/// (`PID_MAX_LIMIT`)
pub(crate) const MOST_PIDS: u32 = (4 << 20) - BESIDES;

/// What a dyno must not see of the host.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What it may see, and must not change.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What a dyno may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Bytes; 0: no limit.
    pub(crate) memory: u64,
    /// Thousandths of a CPU; 0: no limit.
    pub(crate) cpu_millis: u32,
    /// Processes and threads; 0: what goes with the memory.
    pub(crate) pids: u32,
}

impl Limits {
    /// How many processes and threads the dyno may have: what it was given, or what Heroku gives
    /// to a dyno of that memory. Buildpacks tell a dyno's size by it (`ulimit -u`), so one without
    /// a limit on memory counts as the smallest.
    /// (<https://devcenter.heroku.com/articles/limits#processes-threads>)
    pub(crate) fn processes(self) -> u64 {
        const MIB: u64 = 1 << 20;
        if self.pids > 0 {
            return self.pids.into();
        }
        match self.memory / MIB {
            0..=512 => 256,
            513..=1024 => 512,
            1025..=2560 => 16_384,
            _ => 32_768,
        }
    }

    /// Its `ulimit -u`. hsup-init is that user's too, and counts: whoever is given a number has
    /// it for the command.
    fn nproc(self, most: u64) -> u64 {
        most.min(self.processes() + u64::from(self.pids > 0))
    }
}

/// One dyno, as its container is made of.
#[derive(Clone, Debug)]
pub(crate) struct Container<'a> {
    /// The root file system, mounted already.
    pub(crate) root: &'a Path,
    /// What is mounted on `/app`, mounted already.
    pub(crate) app: &'a Path,
    /// Its user and group.
    pub(crate) uid: u32,
    pub(crate) hostname: &'a str,
    /// The network namespace that was made for it.
    pub(crate) netns: PathBuf,
    /// The path of its cgroup in each hierarchy.
    pub(crate) cgroup: &'a str,
    /// Whether there is one hierarchy only, which it may look at.
    pub(crate) unified: bool,
    pub(crate) limits: Limits,
    /// The most that its `ulimit -u` can be made.
    pub(crate) most_processes: u64,
    /// How large `/tmp` and `/var/tmp` may become, in bytes.
    pub(crate) tmp_size: u64,
    pub(crate) binds: &'a [Bind],
}

impl Container<'_> {
    /// The specification.
    ///
    /// # Errors
    /// None that a caller could cause: a field that `oci-spec` wants would be missing.
    pub(crate) fn spec(&self) -> Result<Spec, OciSpecError> {
        let none = Capabilities::new();
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(none.clone())
            .effective(none.clone())
            .permitted(none.clone())
            .inheritable(none.clone())
            .ambient(none)
            .build()?;
        let user = UserBuilder::default()
            .uid(self.uid)
            .gid(self.uid)
            // Without any, libcontainer leaves the driver's own groups to the dyno.
            .additional_gids(vec![self.uid])
            .umask(0o022_u32)
            .build()?;
        let process = ProcessBuilder::default()
            .terminal(false)
            .user(user)
            // What is executed, and with which environment, is the executor's business. HOME is
            // here so that libcontainer does not look for it in the stack's own name service.
            .args(vec!["hsup-init".to_owned()])
            .env(vec!["HOME=/app".to_owned()])
            .cwd("/app")
            .capabilities(capabilities)
            .rlimits(self.rlimits()?)
            .no_new_privileges(true)
            .oom_score_adj(0)
            .build()?;
        let linux = LinuxBuilder::default()
            .namespaces(self.namespaces()?)
            .resources(self.resources()?)
            .cgroups_path(self.cgroup)
            .masked_paths(strings(MASKED))
            .readonly_paths(strings(READ_ONLY))
            .build()?;
        SpecBuilder::default()
            .version("1.0.2")
            .root(
                RootBuilder::default()
                    .path(self.root)
                    .readonly(true)
                    .build()?,
            )
            .hostname(self.hostname)
            .process(process)
            .mounts(self.mounts()?)
            .linux(linux)
            .build()
    }

    fn rlimits(&self) -> Result<Vec<PosixRlimit>, OciSpecError> {
        let limit = |typ, value: u64| {
            PosixRlimitBuilder::default()
                .typ(typ)
                .soft(value)
                .hard(value)
                .build()
        };
        Ok(vec![
            limit(PosixRlimitType::RlimitNofile, OPEN_FILES)?,
            limit(
                PosixRlimitType::RlimitNproc,
                self.limits.nproc(self.most_processes),
            )?,
            limit(PosixRlimitType::RlimitCore, 0)?,
        ])
    }

    fn namespaces(&self) -> Result<Vec<LinuxNamespace>, OciSpecError> {
        let new = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
        Ok(vec![
            new(LinuxNamespaceType::Pid)?,
            new(LinuxNamespaceType::Ipc)?,
            new(LinuxNamespaceType::Uts)?,
            new(LinuxNamespaceType::Mount)?,
            new(LinuxNamespaceType::Cgroup)?,
            LinuxNamespaceBuilder::default()
                .typ(LinuxNamespaceType::Network)
                .path(&self.netns)
                .build()?,
        ])
    }

    fn resources(&self) -> Result<LinuxResources, OciSpecError> {
        // libcontainer adds the harmless devices to it.
        let no_device = LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .access("rwm")
            .build()?;
        let pids = self.limits.processes() + u64::from(BESIDES);
        let mut resources = LinuxResourcesBuilder::default()
            .devices(vec![no_device])
            .pids(
                LinuxPidsBuilder::default()
                    .limit(i64::try_from(pids).unwrap_or(i64::MAX))
                    .build()?,
            );
        if self.limits.memory > 0 {
            let memory = i64::try_from(self.limits.memory).unwrap_or(i64::MAX);
            resources = resources.memory(LinuxMemoryBuilder::default().limit(memory).build()?);
        }
        if self.limits.cpu_millis > 0 {
            let quota = i64::from(self.limits.cpu_millis) * (CPU_PERIOD.cast_signed() / 1000);
            let cpu = LinuxCpuBuilder::default().period(CPU_PERIOD).quota(quota);
            resources = resources.cpu(cpu.build()?);
        }
        resources.build()
    }

    fn mounts(&self) -> Result<Vec<Mount>, OciSpecError> {
        let uid = self.uid;
        let pts = format!("uid={uid}");
        let tmp_size = format!("size={}", self.tmp_size);
        let owner = [format!("uid={uid}"), format!("gid={uid}")];
        let tmp = [
            "nosuid",
            "nodev",
            "mode=1777",
            &tmp_size,
            &owner[0],
            &owner[1],
        ];
        let plain = ["nosuid", "noexec", "nodev"];
        let mut mounts = vec![
            mount("/proc", "proc", "proc", &plain)?,
            mount(
                "/dev",
                "tmpfs",
                "tmpfs",
                &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"],
            )?,
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    // The host has a few thousand for all.
                    "max=64",
                    // Or the terminal would be root's.
                    &pts,
                ],
            )?,
            mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", SHM],
            )?,
            mount(
                "/sys",
                "sysfs",
                "sysfs",
                &["nosuid", "noexec", "nodev", "ro"],
            )?,
            mount("/tmp", "tmpfs", "tmpfs", &tmp)?,
            mount("/var/tmp", "tmpfs", "tmpfs", &tmp)?,
            mount(
                "/app",
                "bind",
                &self.app.to_string_lossy(),
                &["rbind", "nosuid", "nodev", "rw", "private"],
            )?,
        ];
        if self.unified {
            // Language runtimes look there for their limits.
            mounts.push(mount(
                "/sys/fs/cgroup",
                "cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "ro"],
            )?);
        }
        for bind in self.binds {
            mounts.push(mount(
                &bind.dyno_path.to_string_lossy(),
                "bind",
                &bind.source.to_string_lossy(),
                &[
                    "rbind",
                    "nosuid",
                    "nodev",
                    "private",
                    if bind.writable { "rw" } else { "ro" },
                ],
            )?);
        }
        Ok(mounts)
    }
}

fn mount(
    destination: &str,
    typ: &str,
    source: &str,
    options: &[&str],
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ(typ)
        .source(source)
        .options(strings(options))
        .build()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}
