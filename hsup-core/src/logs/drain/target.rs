//! Where log lines go, as somebody wrote it: the URL of a drain.
//!
//! A URL's user information, path and query may each be a token, so what is shown of a drain
//! on a network is its scheme and host. Options of ours stand where no server sees them: in
//! the query of URLs that name files and plain streams, in the fragment of HTTP's.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use reqwest::Url;
use thiserror::Error;

use crate::{loopback::is_this_machine, release::LogTarget};

/// What a file may hold before it is put aside, and how many of those are kept.
const MAX_SIZE: u64 = 100 << 20;
const KEEP: u32 = 5;
/// A file that is put aside with every few lines is a mistake.
const LEAST_MAX_SIZE: u64 = 4096;
/// Ports that have no default in a URL: syslog over TCP (by custom), over TLS (RFC 5425).
const SYSLOG_PORT: u16 = 514;
const SYSLOG_TLS_PORT: u16 = 6514;

/// A place that takes log lines.
#[derive(Clone, PartialEq, Eq)]
pub struct DrainTarget {
    pub(super) kind: Kind,
    /// What people may see of it.
    shown: String,
}

/// How a drain is spoken to.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// As log-shuttle speaks to Logplex.
    Logplex(Http),
    /// As Logplex speaks to an HTTPS drain.
    Https(Http),
    /// RFC 5424 messages with octet counting (RFC 6587 over TCP, RFC 5425 over TLS).
    Syslog {
        peer: Peer,
        /// The HOSTNAME of the messages; `None`: this machine's.
        hostname: Option<String>,
    },
    /// A line of text for each.
    Text(FilePlace),
    /// A JSON object for each.
    JsonFile(FilePlace),
    JsonStream(Peer),
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Http {
    /// Secret.
    pub(super) url: Url,
    pub(super) gzip: bool,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("gzip", &self.gzip)
            .finish_non_exhaustive()
    }
}

/// The other end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16 },
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilePlace {
    pub(super) path: PathBuf,
    /// In bytes.
    pub(super) max_size: u64,
    /// How many full ones are kept beside it.
    pub(super) keep: u32,
}

/// A text that names no drain. It may hold a token, so it is not shown.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseTargetError {
    #[error("not a URL")]
    NoUrl,
    #[error(
        "no log drain has such a scheme: use https, http, logplex+https, logplex+http, syslog, \
         syslog+tls, file, json, json+tcp or json+unix"
    )]
    Scheme,
    #[error("no Logplex has such a scheme: use https or http, and --log-to for other drains")]
    NoLogplex,
    #[error("no drain of a release has such a scheme: use https, http, syslog or syslog+tls")]
    OfRelease,
    #[error("a {0} URL needs a host")]
    Host(&'static str),
    #[error("a {0} URL needs an absolute path, as in {0}:///var/log/app.log")]
    Path(&'static str),
    // Which one is not said: a query without a name is as likely a token.
    #[error("a {0} URL does not have the option that it is given: see docs/logs.md")]
    Option(&'static str),
    #[error("the option `{name}` is {expected}")]
    Value {
        name: &'static str,
        expected: &'static str,
    },
}

impl DrainTarget {
    /// The drain that `--log-to` names.
    ///
    /// # Errors
    /// When it names none.
    pub fn parse(text: &str) -> Result<Self, ParseTargetError> {
        let (scheme, rest) = text.split_once("://").ok_or(ParseTargetError::NoUrl)?;
        match &*scheme.to_ascii_lowercase() {
            "https" => http("https", rest, Kind::Https),
            "http" => http("http", rest, Kind::Https),
            "logplex+https" => http("https", rest, Kind::Logplex),
            "logplex+http" => http("http", rest, Kind::Logplex),
            "syslog" | "syslog+tcp" => syslog("syslog", rest),
            "syslog+tls" => syslog("syslog+tls", rest),
            "file" => {
                let place = file("file", rest)?;
                Ok(Self::of("file", &place.path.clone(), Kind::Text(place)))
            }
            "json" => {
                let place = file("json", rest)?;
                Ok(Self::of("json", &place.path.clone(), Kind::JsonFile(place)))
            }
            "json+tcp" => {
                let url = parse("json+tcp", rest)?;
                options("json+tcp", &url, |_, _| Ok(false))?;
                let (host, port) = host_and_port("json+tcp", &url, None)?;
                let shown = format!("json+tcp://{host}:{port}");
                let kind = Kind::JsonStream(Peer::Tcp { host, port });
                Ok(Self { kind, shown })
            }
            "json+unix" => {
                let url = parse("file", rest)?;
                options("json+unix", &url, |_, _| Ok(false))?;
                let path = path("json+unix", &url)?;
                let kind = Kind::JsonStream(Peer::Unix(path.clone()));
                Ok(Self::of("json+unix", &path, kind))
            }
            _ => Err(ParseTargetError::Scheme),
        }
    }

    /// The Logplex that `--logplex-url` names.
    ///
    /// # Errors
    /// When it is no HTTP URL.
    pub fn logplex(text: &str) -> Result<Self, ParseTargetError> {
        let (scheme, rest) = text.split_once("://").ok_or(ParseTargetError::NoUrl)?;
        match &*scheme.to_ascii_lowercase() {
            "https" | "logplex+https" => http("https", rest, Kind::Logplex),
            "http" | "logplex+http" => http("http", rest, Kind::Logplex),
            _ => Err(ParseTargetError::NoLogplex),
        }
    }

    /// The `LogplexURL` of a release: a Logplex, or another drain on a network. A release
    /// has no say in which files of this machine are written to.
    ///
    /// # Errors
    /// When it is no such thing.
    pub fn of_release(target: &LogTarget) -> Result<Self, ParseTargetError> {
        let text = target.expose();
        match Self::logplex(text) {
            Err(ParseTargetError::NoLogplex) => {}
            result => return result,
        }
        match Self::parse(text) {
            Ok(other) if matches!(other.kind, Kind::Syslog { .. }) => Ok(other),
            Ok(_) | Err(ParseTargetError::Scheme) => Err(ParseTargetError::OfRelease),
            Err(error) => Err(error),
        }
    }

    /// Whether it is a Logplex, of which there is one.
    pub(super) const fn is_logplex(&self) -> bool {
        matches!(self.kind, Kind::Logplex(_))
    }

    /// Whether a token goes there over a network where everybody on its way can read it.
    pub fn bares_its_token(&self) -> bool {
        let (Kind::Logplex(Http { url, .. }) | Kind::Https(Http { url, .. })) = &self.kind else {
            return false;
        };
        let has_token =
            !url.username().is_empty() || url.password().is_some() || url.query().is_some();
        has_token && url.scheme() == "http" && !url.host_str().is_some_and(is_this_machine)
    }

    /// The file that it writes to, as it is named.
    pub fn file(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Text(place) | Kind::JsonFile(place) => Some(&place.path),
            _ => None,
        }
    }

    fn of(scheme: &str, path: &Path, kind: Kind) -> Self {
        let shown = format!("{scheme}://{}", path.display());
        Self { kind, shown }
    }
}

/// Without what may be secret.
impl fmt::Display for DrainTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DrainTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shown)
    }
}

fn parse(scheme: &str, rest: &str) -> Result<Url, ParseTargetError> {
    Url::parse(&format!("{scheme}://{rest}")).map_err(|_| ParseTargetError::NoUrl)
}

fn http(
    scheme: &'static str,
    rest: &str,
    kind: fn(Http) -> Kind,
) -> Result<DrainTarget, ParseTargetError> {
    let mut url = parse(scheme, rest)?;
    let mut gzip = false;
    for name in url.fragment().unwrap_or_default().split('&') {
        match name {
            "" => {}
            "gzip" => gzip = true,
            // What stands here may be anything.
            _ => {
                return Err(ParseTargetError::Value {
                    name: "#…",
                    expected: "`#gzip`",
                });
            }
        }
    }
    url.set_fragment(None);
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or(ParseTargetError::Host(scheme))?;
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    let shown = format!("{scheme}://{host}{port}");
    let kind = kind(Http { url, gzip });
    let shown = match kind {
        Kind::Logplex(_) => format!("logplex+{shown}"),
        _ => shown,
    };
    Ok(DrainTarget { kind, shown })
}

fn syslog(scheme: &'static str, rest: &str) -> Result<DrainTarget, ParseTargetError> {
    let url = parse(scheme, rest)?;
    let mut hostname = None;
    options(scheme, &url, |name, value| {
        let is_hostname = name == "hostname";
        if is_hostname {
            hostname = Some(value.to_owned());
        }
        Ok(is_hostname)
    })?;
    let is_tls = scheme == "syslog+tls";
    let default = if is_tls { SYSLOG_TLS_PORT } else { SYSLOG_PORT };
    let (host, port) = host_and_port(scheme, &url, Some(default))?;
    let shown = format!("{scheme}://{host}:{port}");
    let peer = if is_tls {
        Peer::Tls { host, port }
    } else {
        Peer::Tcp { host, port }
    };
    let kind = Kind::Syslog { peer, hostname };
    Ok(DrainTarget { kind, shown })
}

fn file(scheme: &'static str, rest: &str) -> Result<FilePlace, ParseTargetError> {
    let url = parse("file", rest)?;
    let mut place = FilePlace {
        path: path(scheme, &url)?,
        max_size: MAX_SIZE,
        keep: KEEP,
    };
    options(scheme, &url, |name, value| {
        match name {
            "max-size" => {
                place.max_size = size(value).ok_or(ParseTargetError::Value {
                    name: "max-size",
                    expected: "a size from 4K on, as in 500K, 100M or 2G",
                })?;
            }
            "keep" => {
                place.keep = value.parse().ok().filter(|keep| *keep <= 1000).ok_or(
                    ParseTargetError::Value {
                        name: "keep",
                        expected: "a number from 0 to 1000",
                    },
                )?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(place)
}

fn path(scheme: &'static str, url: &Url) -> Result<PathBuf, ParseTargetError> {
    let path = url.to_file_path().ok();
    path.filter(|path| path.file_name().is_some() && !url.path().ends_with('/'))
        .ok_or(ParseTargetError::Path(scheme))
}

fn host_and_port(
    scheme: &'static str,
    url: &Url,
    default: Option<u16>,
) -> Result<(String, u16), ParseTargetError> {
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or(ParseTargetError::Host(scheme))?;
    let port = url.port().or(default).ok_or(ParseTargetError::Value {
        name: "port",
        expected: "needed, as in json+tcp://localhost:6000",
    })?;
    // A literal IPv6 address keeps its brackets: that is how an address with a port is written.
    Ok((host.to_owned(), port))
}

/// Gives every `name=value` of the query to `take`, which answers whether it knows it.
fn options(
    scheme: &'static str,
    url: &Url,
    mut take: impl FnMut(&str, &str) -> Result<bool, ParseTargetError>,
) -> Result<(), ParseTargetError> {
    for (name, value) in url.query_pairs() {
        if !take(&name, &value)? {
            return Err(ParseTargetError::Option(scheme));
        }
    }
    Ok(())
}

/// `500K`, `100M`, `2G` or a number of bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..].to_ascii_uppercase()[..] {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes >= LEAST_MAX_SIZE).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("https://user:hunter2@logs.example/hunter2?hunter2#gzip" => "https://logs.example")]
    #[test_case("logplex+https://token:hunter2@logs.example:8443/logs" => "logplex+https://logs.example:8443")]
    #[test_case("syslog://logs.example" => "syslog://logs.example:514")]
    #[test_case("syslog+tls://logs.example?hostname=shop" => "syslog+tls://logs.example:6514")]
    #[test_case("file:///var/log/a%20b.log?max-size=5M&keep=2" => "file:///var/log/a b.log")]
    #[test_case("json:///var/log/a.json" => "json:///var/log/a.json")]
    #[test_case("json+tcp://[::1]:6000" => "json+tcp://[::1]:6000")]
    #[test_case("json+unix:///run/logs.sock" => "json+unix:///run/logs.sock")]
    fn what_is_shown_has_no_secret(text: &str) -> String {
        let target = DrainTarget::parse(text).unwrap();
        assert!(!format!("{target:?}").contains("hunter2"));
        target.to_string()
    }

    #[test_case("hunter2" => "not a URL")]
    #[test_case("https://" => "not a URL"; "no host")]
    #[test_case("syslog:///hunter2" => "a syslog URL needs a host")]
    #[test_case("file://hunter2/x" => "a file URL needs an absolute path, as in file:///var/log/app.log")]
    #[test_case("json:///" => "a json URL needs an absolute path, as in json:///var/log/app.log")]
    #[test_case("file:///var/log/" => "a file URL needs an absolute path, as in file:///var/log/app.log"; "a folder")]
    #[test_case("file:///a?mode=hunter2" => "a file URL does not have the option that it is given: see docs/logs.md")]
    #[test_case("file:///a?max-size=hunter2" => "the option `max-size` is a size from 4K on, as in 500K, 100M or 2G")]
    #[test_case("file:///a?max-size=1" => "the option `max-size` is a size from 4K on, as in 500K, 100M or 2G"; "small")]
    #[test_case("file:///a?keep=-1" => "the option `keep` is a number from 0 to 1000")]
    #[test_case("https://host/#hunter2" => "the option `#…` is `#gzip`")]
    #[test_case("json+tcp://host" => "the option `port` is needed, as in json+tcp://localhost:6000")]
    fn what_is_no_drain_says_why_and_no_secret(text: &str) -> String {
        let error = DrainTarget::parse(text).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        error
    }

    #[test]
    fn the_url_of_a_release_is_a_logplex_and_never_a_file() {
        let of = |url: &str| DrainTarget::of_release(&LogTarget::new(url).unwrap());
        let kind = |url: &str| of(url).unwrap().kind;
        assert!(matches!(
            kind("https://token:x@logs.example/logs"),
            Kind::Logplex(_)
        ));
        assert!(matches!(
            kind("syslog+tls://logs.example"),
            Kind::Syslog { .. }
        ));
        for url in [
            "file://localhost/etc/passwd",
            "json+tcp://host:1",
            "ftp://host",
        ] {
            assert_eq!(of(url), Err(ParseTargetError::OfRelease), "{url}");
        }
    }

    #[test_case("logplex+http://token:x@logs.example/logs" => true)]
    #[test_case("http://token@10.1.2.3/" => true; "alone")]
    #[test_case("http://drain.example/?key=x" => true; "in a query")]
    #[test_case("https://token:x@logs.example/logs" => false; "secret")]
    #[test_case("http://logs.example/logs" => false; "no token")]
    #[test_case("http://token:x@127.0.0.1:8080/logs" => false; "this machine")]
    #[test_case("http://token:x@[::1]/logs" => false; "this machine as well")]
    #[test_case("http://token:x@localhost/logs" => false; "by name")]
    #[test_case("syslog://logs.example" => false; "another kind")]
    fn a_token_in_plain_text_is_seen(text: &str) -> bool {
        DrainTarget::parse(text).unwrap().bares_its_token()
    }

    #[test_case("4096" => Some(4096))]
    #[test_case("500K" => Some(512_000))]
    #[test_case("100m" => Some(104_857_600))]
    #[test_case("2GiB" => Some(2_147_483_648))]
    #[test_case("99999999999999G" => None)]
    #[test_case("M" => None)]
    fn sizes(text: &str) -> Option<u64> {
        size(text)
    }
}
