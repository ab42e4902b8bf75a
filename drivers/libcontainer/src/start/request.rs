//! What a Start asks for, in the driver's own terms, and whether the kernel can give it.

use std::{ops::RangeInclusive, path::Path};

use hsup_driver_kit::{Status, proto::StartRequest};

use crate::{
    spec::{self, Limits},
    stack,
};

/// The least that a limit on memory can be, in bytes: hsup-init and a shell.
const LEAST_MEMORY: u64 = 4 << 20;
/// The longest word of arguments and environment, its end included, and the most that all of them
/// may have: `MAX_ARG_STRLEN`, and a quarter of the stack's limit, of execve(2).
pub(super) const LONGEST_WORD: usize = 128 << 10;
const MOST_WORDS: usize = 2 << 20;

/// What a dyno may use.
pub(super) fn limits(request: &StartRequest) -> Result<Limits, Status> {
    let wanted = request.limits.unwrap_or_default();
    let bounds: [(&str, u64, RangeInclusive<u64>); 3] = [
        ("memory_bytes", wanted.memory_bytes, LEAST_MEMORY..=u64::MAX),
        (
            "cpu_millis",
            wanted.cpu_millis.into(),
            spec::LEAST_CPU_MILLIS.into()..=u64::MAX,
        ),
        ("pids", wanted.pids.into(), 1..=spec::MOST_PIDS.into()),
    ];
    for (name, value, bounds) in bounds {
        // 0 is no limit.
        if value == 0 || bounds.contains(&value) {
            continue;
        }
        let (bound, word) = if value < *bounds.start() {
            (bounds.start(), "least")
        } else {
            (bounds.end(), "most")
        };
        return Err(Status::invalid_argument(format!(
            "limits.{name} is {value}, and {bound} is the {word}"
        )));
    }
    Ok(Limits {
        memory: wanted.memory_bytes,
        cpu_millis: wanted.cpu_millis,
        pids: wanted.pids,
    })
}

/// What is executed. A line is bash's; a stack without a bash has a shell all the same.
pub(super) fn command(stack_root: &Path, argv: Vec<String>, line: &str) -> Vec<String> {
    if line.is_empty() || stack::has_bash(stack_root) {
        return argv;
    }
    ["sh", "-c", line].map(str::to_owned).to_vec()
}

/// Whether the kernel takes so much for a program: otherwise the dyno would end without a word.
pub(super) fn fits_execve(request: &StartRequest) -> Result<(), Status> {
    let argv = request
        .argv
        .iter()
        .map(|word| ("an argument", word.len() + 1));
    let env = request.env.iter();
    let env = env.map(|(name, value)| ("a variable", name.len() + value.len() + 2));
    let fits = |what: &str, len: usize| {
        if len <= LONGEST_WORD {
            return Ok(());
        }
        Err(Status::invalid_argument(format!(
            "{what} of the dyno has {len} bytes, and {LONGEST_WORD} is the most"
        )))
    };
    // A stack without a bash runs it in place of argv.
    fits("the command line", request.shell_line.len() + 1)?;
    let mut all = 0;
    for (what, len) in argv.chain(env) {
        fits(what, len)?;
        all += len + size_of::<usize>();
    }
    if all > MOST_WORDS {
        return Err(Status::invalid_argument(format!(
            "arguments and environment of the dyno have {all} bytes, and {MOST_WORDS} is the most"
        )));
    }
    Ok(())
}

pub(super) fn port(request: &StartRequest) -> Option<u16> {
    let port = request.env.get("PORT")?.parse().ok()?;
    (port > 0).then_some(port)
}

#[cfg(test)]
mod tests {
    use hsup_driver_kit::proto;
    use test_case::test_case;

    use super::*;

    #[test]
    fn a_command_line_is_no_longer_than_the_kernel_takes() {
        let of_length = |length| StartRequest {
            shell_line: "x".repeat(length),
            ..StartRequest::default()
        };
        assert!(fits_execve(&of_length(LONGEST_WORD - 1)).is_ok());
        let status = fits_execve(&of_length(LONGEST_WORD)).unwrap_err();
        assert_eq!(
            status.message(),
            "the command line of the dyno has 131073 bytes, and 131072 is the most"
        );
    }

    #[test_case(0, 0, 0 => None; "none")]
    #[test_case(4 << 20, 10, 1 => None; "the least")]
    #[test_case(u64::MAX, u32::MAX, 4_194_302 => None; "the most")]
    #[test_case(1, 0, 0 => Some("limits.memory_bytes is 1, and 4194304 is the least".to_owned()); "memory")]
    #[test_case(0, 9, 0 => Some("limits.cpu_millis is 9, and 10 is the least".to_owned()); "cpu")]
    #[test_case(0, 0, 4_194_303 => Some("limits.pids is 4194303, and 4194302 is the most".to_owned()); "pids")]
    fn limits_are_what_the_kernel_takes(
        memory_bytes: u64,
        cpu_millis: u32,
        pids: u32,
    ) -> Option<String> {
        let request = StartRequest {
            limits: Some(proto::Limits {
                memory_bytes,
                cpu_millis,
                pids,
            }),
            ..StartRequest::default()
        };
        limits(&request)
            .err()
            .map(|status| status.message().to_owned())
    }
}
