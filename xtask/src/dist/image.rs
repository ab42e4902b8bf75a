//! What `docker build` makes an image of: the Dockerfile, and the package's programs, without what
//! is for people and for service managers.

use super::layout::{Content, Entry};

pub(super) const DOCKERFILE: &str = include_str!("../../../packaging/docker/Dockerfile");

/// What the Dockerfile calls it.
pub(super) const ARCHIVE: &str = "hsup.tar.gz";

/// What is in the image, of all that is in the package: the programs and the licences.
pub(super) fn entries(all: &[Entry]) -> Vec<Entry> {
    const FOLDERS: [&str; 2] = ["etc/hsup", "usr/bin"];
    const LICENCES: &str = "usr/share/doc/hsup/";
    let is_program = |path: &str| path.starts_with("usr/bin/");
    let is_licence = |path: &str| {
        path.strip_prefix(LICENCES)
            .is_some_and(|name| ["copyright", "LICENSES-OF-OTHERS.gz"].contains(&name))
    };
    let is_wanted = |entry: &&Entry| match entry.content {
        Content::Folder => {
            FOLDERS.contains(&entry.path.as_str())
                || LICENCES.starts_with(&format!("{}/", entry.path))
        }
        Content::File(_) | Content::Link(_) => is_program(&entry.path) || is_licence(&entry.path),
    };
    all.iter().filter(is_wanted).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_has_programs_licences_and_a_control_directory() {
        let folder = |path: &str| Entry::folder(path);
        let file = |path: &str| Entry::file(path, 0o644, Vec::new());
        let all = [
            folder("etc"),
            file("etc/default/hsup-driver-libcontainer"),
            folder("etc/hsup"),
            folder("usr"),
            folder("usr/bin"),
            file("usr/bin/hsup"),
            Entry::link("usr/bin/hsup-driver-simple", "hsup"),
            file("usr/lib/systemd/system/hsup@.service"),
            folder("usr/share"),
            folder("usr/share/doc"),
            folder("usr/share/doc/hsup"),
            file("usr/share/doc/hsup/README.md"),
            file("usr/share/doc/hsup/copyright"),
            folder("usr/share/man"),
        ];
        let kept = entries(&all);
        let paths: Vec<_> = kept.iter().map(|entry| entry.path.as_str()).collect();
        let wanted = [
            "etc/hsup",
            "usr",
            "usr/bin",
            "usr/bin/hsup",
            "usr/bin/hsup-driver-simple",
            "usr/share",
            "usr/share/doc",
            "usr/share/doc/hsup",
            "usr/share/doc/hsup/copyright",
        ];
        assert_eq!(paths, wanted);
    }

    /// It is made of what is beside it, and starts what is in it.
    #[test]
    fn the_dockerfile_names_what_there_is() {
        let lines: Vec<_> = DOCKERFILE.lines().collect();
        assert!(lines.contains(&format!("ADD {ARCHIVE} /").as_str()));
        assert!(lines.contains(&"ENTRYPOINT [\"/usr/bin/hsup\"]"));
    }
}
