//! `cargo xtask dist`: what an operator installs, as an archive, as a Debian package, and as what
//! an image of Docker's is built from.
//!
//! The same programs and the same `SOURCE_DATE_EPOCH` make the same bytes: entries are sorted,
//! and nothing in them is of the machine that packs.

mod archive;
mod deb;
mod image;
mod layout;
mod licences;
mod manual;

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

/// The programs of the package, each with the crate that has it.
const PROGRAMS: [(&str, &str); 6] = [
    ("hsup-cli", "hsup"),
    ("hsup-cli", "hsupctl"),
    ("hsup-driver-docker", "hsup-driver-docker"),
    ("hsup-driver-libcontainer", "hsup-driver-libcontainer"),
    ("hsup-init", "hsup-shim"),
    ("hsup-tests", "hsup-driver-check"),
];

/// Those whose man page is their help.
const HELPS: [&str; 5] = [
    "hsup-driver-check",
    "hsup-driver-docker",
    "hsup-driver-libcontainer",
    "hsup-driver-simple",
    "hsup-shim",
];

/// How to pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct How<'a> {
    /// With the programs of a debug build, for trying a package out.
    is_debug: bool,
    /// The package's own part of its version.
    revision: &'a str,
}

/// What is packed.
#[derive(Debug)]
struct Release {
    /// hsup's.
    version: &'static str,
    revision: String,
    /// Debian's word for the machine, and the triple's.
    architecture: (&'static str, &'static str),
    /// The time of every file, in seconds since 1970.
    epoch: u64,
    size: archive::Size,
}

pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    let how = how(words)?;
    let release = Release {
        version: env!("CARGO_PKG_VERSION"),
        revision: how.revision.to_owned(),
        architecture: match env::consts::ARCH {
            "x86_64" => ("amd64", "x86_64"),
            "aarch64" => ("arm64", "aarch64"),
            other => bail!("no package is made for {other}"),
        },
        epoch: epoch()?,
        size: if how.is_debug {
            archive::Size::Any
        } else {
            archive::Size::Small
        },
    };
    let programs = build(how.is_debug)?;
    let helps = HELPS.map(|name| help(name, how.is_debug).map(|text| (name, text)));
    let helps = helps.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let entries = layout::entries(&root(), &programs, &helps)?;
    let folder = target().join("dist");
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to make `{}`", folder.display()))?;
    let (debian, machine) = release.architecture;
    let Release {
        version, revision, ..
    } = &release;
    // For whoever has no package manager: below `hsup/` what the package has below `/`.
    let tarball = archive::pack(&entries, "hsup/", release.epoch, release.size)?;
    write(
        &folder.join(format!("hsup-{version}-{machine}-linux-gnu.tar.gz")),
        &tarball,
    )?;
    let package = deb::package(&release, &entries)?;
    write(
        &folder.join(format!("hsup_{version}-{revision}_{debian}.deb")),
        &package,
    )?;
    let context = folder.join("docker");
    fs::create_dir_all(&context)
        .with_context(|| format!("failed to make `{}`", context.display()))?;
    let programs = archive::pack(&image::entries(&entries), "", release.epoch, release.size)?;
    write(&context.join(image::ARCHIVE), &programs)?;
    write(&context.join("Dockerfile"), image::DOCKERFILE.as_bytes())
}

fn how<'a>(words: &[&'a str]) -> anyhow::Result<How<'a>> {
    let mut how = How {
        is_debug: false,
        revision: "1",
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--debug" => how.is_debug = true,
            "--revision" => {
                let number = words.next().context("--revision needs a number")?;
                let is_number = number.parse::<u32>().is_ok();
                ensure!(is_number, "`{number}` is not the number of a revision");
                how.revision = number;
            }
            other => bail!("dist knows no `{other}`"),
        }
    }
    Ok(how)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("")
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// `SOURCE_DATE_EPOCH`, else the time of the commit; without a checkout, none.
fn epoch() -> anyhow::Result<u64> {
    if let Ok(given) = env::var("SOURCE_DATE_EPOCH") {
        return given
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH is `{given}`, and no number"));
    }
    let commit = output("git", &["log", "-1", "--format=%ct"]);
    Ok(commit
        .ok()
        .and_then(|time| time.trim().parse().ok())
        .unwrap_or(0))
}

fn built(is_debug: bool) -> PathBuf {
    target().join(if is_debug { "debug" } else { "release" })
}

/// What a program that was built says of itself.
#[expect(
    clippy::disallowed_methods,
    reason = "a program that only says something is no dyno"
)]
fn help(name: &str, is_debug: bool) -> anyhow::Result<String> {
    // hsup acts as the simple driver under that name.
    let file = if name == "hsup-driver-simple" {
        "hsup"
    } else {
        name
    };
    let output = Command::new(built(is_debug).join(file))
        .arg0(name)
        .arg("--help")
        .output()
        .with_context(|| format!("failed to run {name}"))?;
    ensure!(
        output.status.success(),
        "{name} --help failed: {}",
        output.status
    );
    String::from_utf8(output.stdout).with_context(|| format!("the help of {name} is no text"))
}

/// Builds the programs; answers them by their names.
fn build(is_debug: bool) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut arguments = vec!["build", "--locked"];
    if is_debug {
        // As everything is built that is tested: what is there already is not built once more,
        // with what these programs alone ask of their dependencies.
        arguments.extend(["--workspace", "--bins", "--tests", "--quiet"]);
    } else {
        // It takes minutes, and cargo says how far it is.
        arguments.push("--release");
        for (package, _) in PROGRAMS {
            arguments.extend(["--package", package]);
        }
        for (_, program) in PROGRAMS {
            arguments.extend(["--bin", program]);
        }
    }
    let mut flags: Vec<OsString> = Vec::new();
    if !is_debug {
        // Where it was built is nobody's business, and not the same everywhere.
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
        for (folder, name) in [(Some(root()), "/hsup"), (home, "/cargo")] {
            let Some(folder) = folder else { continue };
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(folder);
            flag.push("=");
            flag.push(name);
            flags.push(flag);
        }
    }
    cargo(&arguments, &flags.join("\u{1f}".as_ref()))?;
    let folder = built(is_debug);
    let programs = PROGRAMS.iter().map(|(_, program)| {
        let path = folder.join(program);
        if is_debug {
            // What tells a debugger of the code is more than the code, and a release has none.
            let stripped = tempfile::NamedTempFile::new().context("failed to make a file")?;
            let to = stripped.path().display().to_string();
            output(
                "strip",
                &["--strip-all", "-o", &to, &path.display().to_string()],
            )?;
            return Ok((*program, read(stripped.path())?));
        }
        Ok((*program, read(&path)?))
    });
    programs.collect()
}

#[expect(clippy::disallowed_methods, reason = "cargo is no dyno")]
fn cargo(arguments: &[&str], flags: &OsString) -> anyhow::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(arguments);
    if !flags.is_empty() {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags);
    }
    let status = cargo.status().context("failed to run cargo")?;
    ensure!(status.success(), "cargo {} failed: {status}", arguments[0]);
    Ok(())
}

/// What a program prints.
#[expect(
    clippy::disallowed_methods,
    reason = "cargo, git and strip are no dynos"
)]
fn output(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .current_dir(root())
        .args(arguments)
        .output()
        .with_context(|| format!("failed to run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).with_context(|| format!("{program} prints no text"))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "nobody reads a package before it is made"
)]
#[expect(clippy::print_stdout, reason = "a chore tells what it has made")]
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("failed to write `{}`", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let release = How {
            is_debug: false,
            revision: "1",
        };
        assert_eq!(how(&[]).unwrap(), release);
        let debug = How {
            is_debug: true,
            revision: "2",
        };
        assert_eq!(how(&["--revision", "2", "--debug"]).unwrap(), debug);
        for bad in [&["--revision"][..], &["--revision", "a/b"], &["--static"]] {
            assert!(how(bad).is_err(), "{bad:?}");
        }
    }

    /// What the page tells people to install is what is made.
    #[test]
    fn the_page_of_installing_names_this_version() {
        let version = env!("CARGO_PKG_VERSION");
        let page = include_str!("../../docs/install.md");
        let ends = ["deb", "gz"];
        let is_file = |word: &&str| ends.contains(&word.rsplit('.').next().unwrap_or_default());
        let words = page.split(|char: char| char.is_whitespace() || "`/,".contains(char));
        let named: Vec<_> = words.filter(is_file).collect();
        let package = format!("hsup_{version}-1_amd64.deb");
        let archive = format!("hsup-{version}-x86_64-linux-gnu.tar.gz");
        assert!(named.contains(&&*package) && named.contains(&&*archive));
        for name in named {
            assert!([&package, &archive].contains(&&name.to_owned()), "{name}");
        }
    }
}
