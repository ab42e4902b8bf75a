//! The text of a control file, kept whole.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// The text of a control file as somebody wrote it, which `loaded` and `rejected` are to hold
/// again. It has config vars in it, so `Debug` shows how long it is and no more; only
/// `Serialize` keeps it whole, for the history on disk (0600). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub struct ControlText(Arc<str>);

impl ControlText {
    /// The text in `bytes`. What is no text in them is lost: it never was a release.
    pub fn new(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into())
    }

    /// The whole text. Secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for ControlText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<ControlText> for String {
    fn from(text: ControlText) -> Self {
        text.0.as_ref().into()
    }
}

impl fmt::Debug for ControlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_whole_and_shows_nothing() {
        let text = ControlText::new("\u{feff}{\"Env\": {\"A\": \"hunter2\"}}\r\n".as_bytes());
        assert_eq!(format!("{text:?}"), "30 bytes");
        let json = serde_json::to_string(&text).unwrap();
        assert_eq!(serde_json::from_str::<ControlText>(&json).unwrap(), text);
    }
}
