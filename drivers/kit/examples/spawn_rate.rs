//! How long 1,000 dynos take to start and end, against a bare loop of `posix_spawn`.
//!
//! `cargo run --release -p hsup-driver-kit --example spawn_rate -- [how many] [--no-cgroups]`

#![expect(clippy::print_stdout, reason = "what it finds is for people")]

use std::{collections::BTreeMap, error::Error, fs::File, io, path::Path, ptr, time::Duration};

use hsup_driver_kit::processes::{Cgroups, Command, Processes, Stdio};
use nix::sys::wait::wait;
use tokio::time::Instant;

const ROUNDS: usize = 8;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut count = 1000;
    let mut cgroups = Cgroups::WherePossible;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--no-cgroups" => cgroups = Cgroups::Never,
            number => count = number.parse()?,
        }
    }
    let processes = Processes::start(None, cgroups)?;
    let mut bare = Vec::new();
    let mut dynos = Vec::new();
    // In turn, so that both meet the same machine. Nobody else reaps while the loop runs.
    for _ in 0..ROUNDS {
        bare.push(bare_loop(count)?);
        dynos.push(all_dynos(&processes, count).await?);
    }
    processes.end().await;
    let (bare, dynos) = (best(&bare), best(&dynos));
    println!(
        "{count} times `bash -c true`, best of {ROUNDS}: posix_spawn {bare:.1?}, dynos {dynos:.1?}, \
         {:.2} times as long (cgroups: {})",
        dynos.as_secs_f64() / bare.as_secs_f64(),
        processes.have_cgroups(),
    );
    Ok(())
}

fn best(rounds: &[Duration]) -> Duration {
    rounds.iter().min().copied().unwrap_or_default()
}

#[expect(unsafe_code, reason = "the thing to compare with")]
fn bare_loop(count: usize) -> io::Result<Duration> {
    let begun = Instant::now();
    for _ in 0..count {
        let argv = [c"bash", c"-c", c"true"].map(|word| word.as_ptr().cast_mut());
        let argv = [argv[0], argv[1], argv[2], ptr::null_mut()];
        let env = [ptr::null_mut()];
        let mut pid = 0;
        // SAFETY: the lists end with null, and what they point to lives to the end of the call.
        let error = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                c"/bin/bash".as_ptr(),
                ptr::null(),
                ptr::null(),
                argv.as_ptr(),
                env.as_ptr(),
            )
        };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
    }
    while wait().is_ok() {}
    Ok(begun.elapsed())
}

async fn all_dynos(processes: &Processes, count: usize) -> Result<Duration, Box<dyn Error>> {
    let begun = Instant::now();
    let mut started = Vec::new();
    for n in 0..count {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let command = Command {
            name: &format!("true-{n}"),
            argv: &["/bin/bash", "-c", "true"].map(str::to_owned),
            env: &BTreeMap::new(),
            cwd: Path::new("/"),
            stdio: Stdio::Fds {
                stdin: null.try_clone()?.into(),
                stdout: null.try_clone()?.into(),
                stderr: null.into(),
                kept: None,
            },
        };
        started.push(processes.spawn(command)?);
        // As between two calls of a supervisor: others get their turn.
        tokio::task::yield_now().await;
    }
    for process in started {
        process.wait().await;
    }
    Ok(begun.elapsed())
}
