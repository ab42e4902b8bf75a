//! What can go wrong with a dyno's network.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::settings::{EXTRA_INTERFACE_VARIABLE, SettingsError};
use crate::lease::{LeaseError, SUBNET_VARIABLE};

/// Why there is no network.
#[derive(Debug, Error)]
pub enum NetError {
    /// A variable holds what nobody can do.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// This host does not forward packets.
    #[error(
        "net.ipv4.ip_forward is 0 and can't be set from here: run `sysctl -w net.ipv4.ip_forward=1` on the host"
    )]
    NoForwarding(#[source] io::Error),
    /// The host uses all addresses that dynos may have.
    #[error(
        "{SUBNET_VARIABLE} {block} leaves no subnet for dynos: the host has {route}; set it to a block that this host does not use"
    )]
    NoRoom {
        /// The pool's block.
        block: String,
        /// What is in the way.
        route: String,
    },
    /// The kernel lacks something that the rules need.
    #[error(
        "this kernel can't do the nf_tables rules that keep dynos apart: load its modules (`modprobe -a nf_tables nft_ct nft_fib_inet nft_reject_inet nft_chain_nat nft_masq`), or use a kernel that has them"
    )]
    NoRules(#[source] io::Error),
    /// Another firewall of the host drops what dynos send.
    #[error("{by} drops the packets of dynos: run `{command}`")]
    Closed {
        /// Where they are dropped.
        by: String,
        /// What lets them through.
        command: String,
    },
    /// A program that changes the rules of the older iptables does not end.
    #[error(
        "somebody has held the lock of iptables-legacy for seconds: find out who (`fuser -v /run/xtables.lock`) and end it"
    )]
    Locked,
    /// There is a link of this name that no dyno of ours had.
    #[error("there is an interface {interface} that is not a dyno's of this work directory")]
    Taken {
        /// Its name.
        interface: String,
    },
    /// The host lacks the interface that dynos shall have an `eth1` on.
    #[error("{EXTRA_INTERFACE_VARIABLE}: this host has no interface {parent}")]
    NoParent {
        /// Its name.
        parent: String,
    },
    /// The kernel can't make the extra interface.
    #[error(
        "{EXTRA_INTERFACE_VARIABLE}: this kernel can't make ipvlan interfaces: load its module (`modprobe ipvlan`), use a kernel that has it, or unset the variable"
    )]
    NoIpvlan(#[source] io::Error),
    /// Another dyno has the address of the extra interface.
    #[error("{EXTRA_INTERFACE_VARIABLE}: another dyno, or the host, has the address {address} now")]
    AddressInUse {
        /// The one that all dynos share.
        address: String,
    },
    /// Something that should always work did not.
    #[error("failed to {operation}")]
    Kernel {
        /// What was tried.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the kernel does not work.
    #[error("failed to write `{}`", path.display())]
    Sysctl {
        /// Which.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The work directory does not work.
    #[error("failed to see which subnets are leased")]
    Leases(#[from] LeaseError),
    /// The name of a table that hsup would never give.
    #[error("`{0}` is no table of hsup")]
    NotOurs(String),
}

/// Whose fault it is, for the code of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The host, or its configuration, has to change: `FAILED_PRECONDITION`.
    Host,
    /// It works again when another dyno is gone: `RESOURCE_EXHAUSTED`.
    Exhausted,
    /// None that is known: `INTERNAL`.
    Unknown,
}

impl NetError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Settings(_)
            | Self::NoForwarding(_)
            | Self::NoRules(_)
            | Self::NoRoom { .. }
            | Self::Closed { .. }
            | Self::Locked
            | Self::Taken { .. }
            | Self::NoParent { .. }
            | Self::NoIpvlan(_) => Fault::Host,
            Self::AddressInUse { .. } => Fault::Exhausted,
            Self::Kernel { source, .. } | Self::Sysctl { source, .. } => fault_of(source),
            Self::Leases(error) if error.is_exhausted() => Fault::Exhausted,
            Self::Leases(_) | Self::NotOurs(_) => Fault::Unknown,
        }
    }
}

fn fault_of(error: &io::Error) -> Fault {
    match error.raw_os_error() {
        // ENOSPC: as many namespaces as user.max_net_namespaces allows.
        Some(
            libc::ENOMEM
            | libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOSPC
            | libc::EAGAIN,
        ) => Fault::Exhausted,
        // EOPNOTSUPP, ENOENT, EPROTONOSUPPORT: a kernel without what we ask for.
        Some(
            libc::EPERM | libc::EACCES | libc::EROFS | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT,
        ) => Fault::Host,
        _ => Fault::Unknown,
    }
}

/// Tells a kernel that can't from one that would not.
pub(super) fn no_rules(error: io::Error) -> NetError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EINVAL) => {
            NetError::NoRules(error)
        }
        _ => failed("make the rules of nf_tables")(error),
    }
}

/// Names what was tried.
pub(super) fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
    let operation = operation.into();
    move |source| NetError::Kernel { operation, source }
}
