//! Chores that need more than one cargo command: `cargo xtask TASK`.

mod bench;
mod codegen;
#[cfg(test)]
mod contract;
mod deny;
mod golden;

use std::{env, ffi::OsString};

use anyhow::bail;

const USAGE: &str = "\
usage: cargo xtask codegen            generate the Rust code of the protos
       cargo xtask golden             promise for ever what the protos have now
       cargo xtask deny               look for licences, crates and sources that may not come into the build
       cargo xtask bench [NAME]...    measure hsup: one-off, many, lines, logs, crash, idle; all by default;
                                      containers, which needs root, Docker and runc, only by name
             --rounds N               the containers so many times, 50 by default";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    match words[..] {
        ["codegen"] => codegen::run(),
        ["golden"] => golden::run(),
        ["deny"] => deny::run(),
        ["bench", ref names @ .., "--rounds", rounds] => bench::run(names, rounds.parse()?),
        ["bench", ref names @ ..] => bench::run(names, bench::ROUNDS),
        // What the benchmarks run as dynos.
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
