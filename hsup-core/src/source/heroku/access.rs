//! Where Heroku's API is, and the token to ask it with.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use reqwest::{Url, header::HeaderValue};
use thiserror::Error;

use super::netrc;
use crate::{
    files::{Links, ReadFileError, read_regular},
    loopback::is_this_machine,
};

/// The variables that a token may be in, the first one first. The second is the original's.
const TOKENS: [&str; 2] = ["HEROKU_API_KEY", "HEROKU_ACCESS_TOKEN"];
const HOST: &str = "HEROKU_HOST";
const NETRC: &str = ".netrc";
const DEFAULT_HOST: &str = "heroku.com";
const MAX_SIZE: u64 = 1 << 20;

/// Where to ask, and as whom. Its `Debug` shows no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub(super) url: Url,
    pub(super) token: Token,
}

/// A token of the Platform API. Secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(String);

impl Token {
    /// The token in `text`, or nothing if no token looks like that.
    fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = |byte: u8| byte.is_ascii_graphic();
        (!text.is_empty() && text.bytes().all(fits)).then(|| Self(text.to_owned()))
    }

    /// The header that carries it.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The text, should it hold the token, without it.
    pub(super) fn hide_in(&self, text: &str) -> String {
        text.replace(&self.0, "…")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// It cannot be told where to ask, or as whom.
#[derive(Debug, Error)]
pub enum FindAccessError {
    /// A variable holds no token.
    #[error("{0} is set to something that is no token: a token is one word")]
    Token(&'static str),
    /// The file with tokens cannot be read.
    #[error("failed to look for a token in `{}`", .path.display())]
    Netrc {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReadFileError,
    },
    /// The file with tokens has something else for Heroku.
    #[error("`{}` has a password for {machine} that is no token", .path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// The host of the API.
        machine: String,
    },
    /// The variable with the host.
    #[error("HEROKU_HOST is no host: expected a name such as `heroku.com`, or `https://HOST`")]
    Host,
    /// The token would be seen by everybody on the way.
    #[error(
        "HEROKU_HOST is an http:// URL, over which the token could be read on its way: \
         use https:// (http:// is for an address of this machine)"
    )]
    Plain,
}

impl Access {
    /// What the environment says, and `~/.netrc` where it names no token; nothing without one.
    ///
    /// # Errors
    /// When what is there is wrong.
    pub fn find(env: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, FindAccessError> {
        let set = |name| env(name).filter(|value| !value.is_empty());
        let url = match set(HOST) {
            Some(host) => api_url(host.to_str().ok_or(FindAccessError::Host)?)?,
            None => api_url(DEFAULT_HOST)?,
        };
        for name in TOKENS {
            if let Some(value) = set(name) {
                let token = value.to_str().and_then(Token::new);
                let token = token.ok_or(FindAccessError::Token(name))?;
                return Ok(Some(Self { url, token }));
            }
        }
        let Some(home) = set("HOME") else {
            return Ok(None);
        };
        let token = from_netrc(&Path::new(&home).join(NETRC), url.host_str().unwrap_or(""))?;
        Ok(token.map(|token| Self { url, token }))
    }

    /// Whether who is asked is on this machine.
    pub(super) fn is_of_this_machine(&self) -> bool {
        self.url.host_str().is_some_and(is_this_machine)
    }

    /// Access for tests.
    #[cfg(test)]
    pub(crate) fn new(url: &str, token: &str) -> Self {
        Self {
            url: api_url(url).unwrap(),
            token: Token::new(token).unwrap(),
        }
    }
}

/// Where the API is, as Heroku's CLI reads `HEROKU_HOST`: a URL as it is, else `api.` and a host.
fn api_url(host: &str) -> Result<Url, FindAccessError> {
    let text = if host.contains("://") {
        host.to_owned()
    } else {
        format!("https://api.{host}")
    };
    let url = Url::parse(&text).map_err(|_| FindAccessError::Host)?;
    let is_bare = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    let name = url.host_str().unwrap_or_default();
    if name.is_empty() || !is_bare {
        return Err(FindAccessError::Host);
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_this_machine(name) => Ok(url),
        "http" => Err(FindAccessError::Plain),
        _ => Err(FindAccessError::Host),
    }
}

fn from_netrc(path: &Path, machine: &str) -> Result<Option<Token>, FindAccessError> {
    let text = match read_regular(path, Links::Follow, MAX_SIZE) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(source) => {
            let path = path.to_owned();
            return Err(FindAccessError::Netrc { path, source });
        }
    };
    let text = String::from_utf8_lossy(&text);
    let Some(password) = netrc::password(&text, machine) else {
        return Ok(None);
    };
    let token = Token::new(password).ok_or_else(|| FindAccessError::Password {
        path: path.to_owned(),
        machine: machine.to_owned(),
    })?;
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::files::write_atomic;

    fn find(vars: &[(&str, &str)]) -> Result<Option<Access>, FindAccessError> {
        Access::find(|wanted| {
            let of_name = vars.iter().find(|(name, _)| *name == wanted);
            of_name.map(|(_, value)| OsString::from(value))
        })
    }

    #[test_case("heroku.com" => Ok("https://api.heroku.com/".to_owned()); "the default")]
    #[test_case("https://fake.example:8443/v" => Ok("https://fake.example:8443/v".to_owned()); "a URL")]
    #[test_case("http://127.0.0.1:5000" => Ok("http://127.0.0.1:5000/".to_owned()); "this machine")]
    #[test_case("http://[::1]:5000" => Ok("http://[::1]:5000/".to_owned()); "this machine by IPv6")]
    #[test_case("http://api.heroku.com" => Err("HEROKU_HOST is an http:// URL".to_owned()); "in plain text")]
    #[test_case("http://127.0.0.1.example" => Err("HEROKU_HOST is an http:// URL".to_owned()); "almost this machine")]
    #[test_case("https://me:pw@x.example" => Err("HEROKU_HOST is no host".to_owned()); "with a password")]
    #[test_case("ftp://x.example" => Err("HEROKU_HOST is no host".to_owned()); "another scheme")]
    #[test_case("a b" => Err("HEROKU_HOST is no host".to_owned()); "no host")]
    fn hosts(host: &str) -> Result<String, String> {
        let start = |error: &FindAccessError| {
            error
                .to_string()
                .split([':', ','])
                .next()
                .map(str::to_owned)
        };
        match find(&[("HEROKU_HOST", host), ("HEROKU_API_KEY", "t")]) {
            Ok(access) => Ok(access.unwrap().url.to_string()),
            Err(FindAccessError::Plain) => Err("HEROKU_HOST is an http:// URL".to_owned()),
            Err(error) => Err(start(&error).unwrap()),
        }
    }

    #[test]
    fn the_first_token_counts_and_none_is_shown() {
        let both = [
            ("HEROKU_ACCESS_TOKEN", "old"),
            ("HEROKU_API_KEY", " HRKU-new\n"),
        ];
        let access = find(&both).unwrap().unwrap();
        assert_eq!(access.token, Token("HRKU-new".to_owned()));
        assert!(!format!("{access:?}").contains("HRKU"));
        let header = access.token.header().unwrap();
        assert_eq!(header, "Bearer HRKU-new");
        assert!(!format!("{header:?}").contains("HRKU"));
        let empty = [("HEROKU_ACCESS_TOKEN", "old"), ("HEROKU_API_KEY", "")];
        assert_eq!(
            find(&empty).unwrap().unwrap().token,
            Token("old".to_owned())
        );
        assert_eq!(find(&[]).unwrap(), None);
        let error = find(&[("HEROKU_API_KEY", "hunter2 x")]).unwrap_err();
        assert!(error.to_string().starts_with("HEROKU_API_KEY is set to"));
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }

    #[test]
    fn netrc_is_looked_at_last() {
        let home = tempfile::tempdir().unwrap();
        let text = "machine api.heroku.com login me password HRKU-netrc\n\
                    machine 127.0.0.1 login me password fake\n";
        write_atomic(&home.path().join(".netrc"), text.as_bytes()).unwrap();
        let home = ("HOME", home.path().to_str().unwrap());
        let token = |vars: &[(&str, &str)]| find(vars).unwrap().unwrap().token.0;
        assert_eq!(token(&[home]), "HRKU-netrc");
        assert_eq!(
            token(&[home, ("HEROKU_HOST", "http://127.0.0.1:1")]),
            "fake"
        );
        assert_eq!(token(&[home, ("HEROKU_ACCESS_TOKEN", "set")]), "set");
    }
}
