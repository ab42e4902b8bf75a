//! A line as a JSON object, for the terminal and for drains alike.

use super::line::Origin;

#[derive(serde::Serialize)]
struct Object<'a> {
    at: &'a str,
    source: &'static str,
    dyno: &'a str,
    stream: &'static str,
    line: &'a str,
}

/// Adds `{"at":…,"source":…,"dyno":…,"stream":…,"line":…}` and a `\n`; bytes of the line, which
/// comes without its own end, that are not UTF-8 are replaced.
pub(super) fn write_json(out: &mut Vec<u8>, at: &str, origin: Origin, dyno: &str, line: &[u8]) {
    let object = Object {
        at,
        source: origin.source.as_str(),
        dyno,
        stream: origin.stream.as_str(),
        line: &String::from_utf8_lossy(line),
    };
    let start = out.len();
    // Strings into memory: there is nothing that could fail.
    if serde_json::to_writer(&mut *out, &object).is_err() {
        out.truncate(start);
    } else {
        out.push(b'\n');
    }
}
