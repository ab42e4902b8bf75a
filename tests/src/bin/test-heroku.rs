//! `test-heroku`: the Platform API of an account with one app, `shop`, to which one slug was
//! deployed. For whoever tries hsup by hand, or by a page of the documentation.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{env, fs, net::TcpListener, process::ExitCode, thread};

use hsup_tests::fake::platform::Platform;

const USAGE: &str = "\
usage: test-heroku ADDRESS SLUG TYPE=COMMAND…

`HEROKU_HOST=http://ADDRESS hsup start -a shop` asks it then; the token is
HRKU-hunter2-0123-4567. SLUG is the archive that was deployed. `web` has a dyno, any other type
none. It serves until it is killed.
";

#[expect(clippy::print_stderr, reason = "a command's own words")]
fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let processes: Option<Vec<_>> = words
        .iter()
        .skip(2)
        .map(|word| word.split_once('='))
        .collect();
    let ([address, slug, ..], Some(processes)) = (&words[..], processes) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let heroku = Platform::listen("shop", TcpListener::bind(address).unwrap());
    heroku.deploy_slug(&processes, fs::read(slug).unwrap(), None);
    loop {
        thread::park();
    }
}
