//! Chores that need more than one cargo command: `cargo xtask TASK`.

mod bench;
mod codegen;
#[cfg(test)]
mod contract;
mod deny;
mod dist;
mod golden;
#[cfg(test)]
mod lint;
mod reference;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod security;

use std::{env, ffi::OsString};

use anyhow::bail;

const USAGE: &str = "\
usage: cargo xtask codegen            generate the Rust code of the protos
       cargo xtask reference          write docs/protocol.md from the protos' comments
       cargo xtask golden             promise for ever what the protos have now
       cargo xtask deny               look for licences, crates and sources that may not come into the build
       cargo xtask dist               make what is installed: an archive and a Debian package, in target/dist
             --revision N             the package's own part of its version, 1 by default
             --debug                  of a debug build, to try a package out
       cargo xtask bench [NAME]...    measure hsup: one-off, many, lines, logs, crash, idle; all by default;
                                      flood, and what needs root and Docker, only by name: containers, docker, swarm
             --rounds N               what needs root so many times, 50 by default
             --minutes N              the flood so long, 10 by default";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    match words[..] {
        ["codegen"] => codegen::run(),
        ["reference"] => reference::run(),
        ["golden"] => golden::run(),
        ["deny"] => deny::run(),
        ["dist", ref words @ ..] => dist::run(words),
        ["bench", ref words @ ..] => bench::run(words),
        // Who measures, and what it runs as dynos.
        ["measure", ref words @ ..] => bench::measure(words),
        ["stamp", fifo] => bench::stamp(Some(fifo.as_ref())),
        ["stamp"] => bench::stamp(None),
        ["write-lines", block, lines] => bench::write_lines(block.parse()?, lines.parse()?),
        ["write-numbered", lines] => bench::write_numbered(lines.parse()?, None),
        ["write-numbered", lines, pace] => {
            bench::write_numbered(lines.parse()?, Some(pace.parse()?))
        }
        _ => bail!(USAGE),
    }
}
