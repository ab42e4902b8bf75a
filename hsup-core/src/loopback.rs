//! Which hosts of URLs need no encryption.

use std::net::IpAddr;

/// Whether a URL's host is this machine for sure. An IPv6 address has its brackets.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(host).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
