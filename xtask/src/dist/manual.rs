//! Man pages and completions, made of what the programs say of themselves.

use std::fmt::Write as _;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use hsup_cli::{ctl, hsup};

use super::{
    archive::{self, Size},
    layout::Entry,
};

fn programs() -> [(&'static str, Command); 2] {
    [
        ("hsup", hsup::args::Cli::command()),
        ("hsupctl", ctl::args::Cli::command()),
    ]
}

/// For the shells whose packages look for them.
pub(super) fn completions() -> Vec<Entry> {
    let mut files = Vec::new();
    for (name, command) in programs() {
        let places = [
            (
                Shell::Bash,
                format!("usr/share/bash-completion/completions/{name}"),
            ),
            (
                Shell::Zsh,
                format!("usr/share/zsh/vendor-completions/_{name}"),
            ),
            (
                Shell::Fish,
                format!("usr/share/fish/vendor_completions.d/{name}.fish"),
            ),
        ];
        for (shell, path) in places {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command.clone(), name, &mut script);
            files.push(Entry::file(path, 0o644, script));
        }
    }
    files
}

/// Of hsup and hsupctl and their commands, and of the programs that have but a help, by their names.
pub(super) fn pages(helps: &[(&str, String)]) -> anyhow::Result<Vec<Entry>> {
    let mut files = Vec::new();
    for (name, help) in helps {
        files.push(file(name, of_help(name, help).as_bytes())?);
    }
    for (_, mut command) in programs() {
        command.build();
        collect(&command, &mut files)?;
    }
    Ok(files)
}

fn collect(command: &Command, files: &mut Vec<Entry>) -> anyhow::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut page)
        .with_context(|| format!("failed to write the page of {name}"))?;
    files.push(file(name, &page)?);
    let shown = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    shown
        .into_iter()
        .try_for_each(|command| collect(command, files))
}

fn file(name: &str, page: &[u8]) -> anyhow::Result<Entry> {
    let path = format!("usr/share/man/man1/{name}.1.gz");
    Ok(Entry::file(path, 0o644, archive::gzip(page, Size::Small)?))
}

/// A page that is a program's help: its first line says what it does.
fn of_help(name: &str, help: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let (about, rest) = help.split_once('\n').unwrap_or((help, ""));
    let about = about.trim_end_matches(['.', ':']);
    let mut page = format!(
        ".TH {name} 1 \"\" \"hsup {version}\"\n.SH NAME\n{name} \\- {}\n.SH DESCRIPTION\n.nf\n",
        escaped(about)
    );
    for line in rest.trim_start().lines() {
        // What begins so would be a request.
        let guard = if line.starts_with(['.', '\'']) {
            "\\&"
        } else {
            ""
        };
        writeln!(page, "{guard}{}", escaped(line)).expect("writing to a string cannot fail");
    }
    page.push_str(".fi\n");
    page
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_help_is_a_page() {
        let page = of_help("jail", "Runs dynos in jails.\n\nUsage: jail\n.x a\\b\n");
        assert!(page.contains("\njail \\- Runs dynos in jails\n"), "{page}");
        assert!(
            page.ends_with("\nUsage: jail\n\\&.x a\\eb\n.fi\n"),
            "{page}"
        );
    }

    #[test]
    fn each_command_has_a_page_and_each_shell_its_script() {
        let pages = pages(&[]).unwrap();
        let scripts = completions();
        let has = |path: &str| pages.iter().chain(&scripts).any(|entry| entry.path == path);
        for path in [
            "usr/share/man/man1/hsup.1.gz",
            "usr/share/man/man1/hsup-start.1.gz",
            "usr/share/man/man1/hsup-export-systemd.1.gz",
            "usr/share/man/man1/hsupctl-ps.1.gz",
            "usr/share/zsh/vendor-completions/_hsupctl",
        ] {
            assert!(has(path), "{path}");
        }
    }

    /// The command and those within it, as they are typed.
    fn typed(command: &Command, before: &str, all: &mut Vec<String>) {
        let line = format!("{before}{}", command.get_name());
        for within in command.get_subcommands().filter(|one| !one.is_hide_set()) {
            typed(within, &format!("{line} "), all);
        }
        all.push(line);
    }

    #[test]
    fn the_page_of_commands_has_the_help_of_each() {
        let page = include_str!("../../../docs/commands.md");
        let mut all: Vec<_> = super::super::HELPS.map(str::to_owned).into();
        for (_, command) in programs() {
            typed(&command, "", &mut all);
        }
        assert!(all.contains(&"hsupctl driver info".to_owned()), "{all:?}");
        let packed = super::super::PROGRAMS.map(|(_, name)| name);
        assert!(packed.iter().all(|name| all.iter().any(|one| one == name)));
        let is_missing = |line: &&String| !page.contains(&format!("\n$ {line} --help\n"));
        let missing: Vec<_> = all.iter().filter(is_missing).collect();
        assert!(missing.is_empty(), "docs/commands.md has no {missing:?}");
    }
}
