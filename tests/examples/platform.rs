//! The fake of Heroku's Platform API, to be tried by hand: it deploys an app `shop`, says how to
//! follow it, and does what the lines of standard input ask for.

use std::{
    error::Error,
    io::{self, Write as _},
    net::TcpListener,
};

use hsup_tests::fake::platform::{Fault, Platform, TOKEN};

const HELP: &str = "\
deploy COMMAND      a new slug, whose web runs this
config NAME=VALUE   a config var, and so a new release
scale TYPE=N        another quantity, and no release
noslug              a release without a slug
image               an OCI image
fail STATUS         every request fails so: 401, 403, 429, 503; or `gone`, `hang`, `cut`
heal                none fails any more
left N              so many requests are left
requests            what was asked so far";

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let address = address.unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let heroku = Platform::listen("shop", TcpListener::bind(address)?);
    heroku.set_config(&[("GREETING", "hello")]);
    heroku.deploy(&[
        ("web", "exec perl -MIO::Socket -e '$|=1; $s=IO::Socket::INET->new(LocalPort=>$ENV{PORT},Listen=>5,ReuseAddr=>1); print qq($ENV{GREETING} on $ENV{PORT}\\n); sleep'"),
        ("worker", "while true; do echo working; sleep 5; done"),
    ]);
    let mut out = io::stdout();
    writeln!(
        out,
        "HEROKU_HOST={} HEROKU_API_KEY={TOKEN} hsup start -a shop",
        heroku.url()
    )?;
    writeln!(out, "{HELP}")?;
    for line in io::stdin().lines() {
        let line = line?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let (name, value) = rest.split_once('=').unwrap_or((rest, ""));
        match word {
            "deploy" => writeln!(out, "v{}", heroku.deploy(&[("web", rest)]))?,
            "config" => writeln!(out, "v{}", heroku.set_config(&[(name, value)]))?,
            "scale" => heroku.scale(name, value.parse()?),
            "noslug" => drop(heroku.release(|release| release.slug = None)),
            "image" => drop(heroku.deploy_image(&[("web", "/cnb/process/web")])),
            "fail" => heroku.fail(
                "",
                match rest {
                    "gone" => Fault::Gone,
                    "hang" => Fault::Hang,
                    "cut" => Fault::Cut,
                    status => Fault::status(status.parse()?),
                },
            ),
            "heal" => heroku.heal(),
            "left" => heroku.leave(rest.parse()?),
            "requests" => writeln!(out, "{}", heroku.requests().join("\n"))?,
            _ => writeln!(out, "{HELP}")?,
        }
    }
    Ok(())
}
