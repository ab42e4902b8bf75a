//! `Debug` for the messages that carry secrets: names and sizes, never values.

use std::{collections::BTreeMap, fmt};

use crate::{control, driver};

/// Shows the keys of a map of config vars.
struct Names<'a>(&'a BTreeMap<String, String>);

impl fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Debug for driver::Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The slug's URL is presigned: whoever has its query has the slug.
        f.debug_struct("Release")
            .field("app", &self.app)
            .field("version", &self.version)
            .field("stack", &self.stack)
            .field("slug_url", &self.slug_url.split(['?', '#']).next())
            .field("slug_checksum", &self.slug_checksum)
            .field("image", &self.image)
            .field("config", &Names(&self.config))
            .finish()
    }
}

impl fmt::Debug for driver::StartRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartRequest")
            .field("dyno_id", &self.dyno_id)
            .field("supervisor_id", &self.supervisor_id)
            .field("artifact", &self.artifact)
            .field("app", &self.app)
            .field("release", &self.release)
            .field("process_type", &self.process_type)
            .field("process_number", &self.process_number)
            .field("argv", &self.argv)
            .field("env", &Names(&self.env))
            .field("io_dir", &self.io_dir)
            .field("tty", &self.tty)
            .field("limits", &self.limits)
            .field("binds", &self.binds)
            .field("options", &self.options)
            .field("shell_line", &self.shell_line)
            .field("linger_ms", &self.linger_ms)
            .field("tty_rows", &self.tty_rows)
            .field("tty_columns", &self.tty_columns)
            .finish()
    }
}

impl fmt::Debug for driver::AttachRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachRequest")
            .field("event", &self.event)
            .finish()
    }
}

impl fmt::Debug for driver::attach_request::Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DynoId(id) => f.debug_tuple("DynoId").field(id).finish(),
            // A person types passwords, too.
            Self::Stdin(bytes) => write!(f, "Stdin({} bytes)", bytes.len()),
            Self::Resize(size) => f.debug_tuple("Resize").field(size).finish(),
            Self::StdinEof(end) => f.debug_tuple("StdinEof").field(end).finish(),
        }
    }
}

impl fmt::Debug for control::ApplyReleaseRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplyReleaseRequest")
            .field("json", &format_args!("{} bytes", self.json.len()))
            .field("no_wait", &self.no_wait)
            .finish()
    }
}

impl fmt::Debug for control::PlanReleaseRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanReleaseRequest")
            .field("json", &format_args!("{} bytes", self.json.len()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let config = BTreeMap::from([("DATABASE_URL".to_owned(), "hunter2".to_owned())]);
        let release = driver::Release {
            slug_url: "https://store/slug.tgz?X-Signature=hunter2".to_owned(),
            config: config.clone(),
            ..Default::default()
        };
        let start = driver::StartRequest {
            env: config,
            ..Default::default()
        };
        let apply = control::ApplyReleaseRequest {
            json: b"hunter2".to_vec(),
            no_wait: false,
        };
        let typed = driver::AttachRequest {
            event: Some(driver::attach_request::Event::Stdin(b"hunter2\r".to_vec())),
        };
        let shown = format!("{release:?} {start:?} {apply:?} {typed:?}");
        let as_bytes = format!("{:?}", b"hunter2".as_slice());
        assert!(
            !shown.contains(as_bytes.trim_matches(['[', ']'])),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("DATABASE_URL"), "{shown}");
    }
}
