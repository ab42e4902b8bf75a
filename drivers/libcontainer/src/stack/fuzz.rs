//! Whether a list of stacks, and what is in a stack, is used only as far as it is what it must
//! be.

use std::path::Path;

use hsup_driver_kit::file_url;

use super::{
    accounts::with,
    manifest::{Checksum, Format, Manifest, is_remote, shown},
    name::{StackName, Version, joined, parted},
};

/// A `manifest.yml` of either shape.
pub fn stack_manifest(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let Ok(manifest) = Manifest::parse(text, "manifest.yml") else {
        return;
    };
    let is_legacy = text.trim_start().starts_with(['-', '[']);
    for entry in &manifest.entries {
        let name = joined(&entry.name, &entry.version);
        // It is found on the disk as what it is.
        assert_eq!(Path::new(&name).file_name(), Some(name.as_ref()));
        assert_eq!(
            parted(&name),
            Some((entry.name.clone(), entry.version.clone()))
        );
        if matches!(entry.format, Format::Other(_)) {
            continue;
        }
        if is_remote(&entry.url) {
            assert_ne!(entry.format, Format::Directory);
            let is_verified = matches!(entry.checksum, Some(Checksum::Sha256(_)));
            assert!(is_verified || is_legacy || !manifest.warnings.is_empty());
        } else {
            assert!(file_url::path(&entry.url).is_some_and(|path| path.is_absolute()));
        }
        assert!(!shown(&entry.url).contains(['?', '#']));
        if let Ok(chosen) = manifest.choose(&entry.name, "amd64") {
            assert_eq!(chosen.name, entry.name);
            let is_usable = entry.arch.as_deref().is_none_or(|arch| arch == "amd64");
            let is_newer = (entry.primary, &entry.version) > (chosen.primary, &chosen.version);
            assert!(!(is_usable && is_newer));
        }
    }
}

/// The small texts: versions in the first three lines, the first also a name, and a
/// stack's `/etc/passwd` in those that are left.
pub fn stack_texts(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.splitn(4, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (a, b, c) = (next(), next(), next());
    if let Ok(name) = a.parse::<StackName>() {
        assert_eq!(name.to_string(), a);
    }
    if let (Ok(a), Ok(b), Ok(c)) = (
        a.parse::<Version>(),
        b.parse::<Version>(),
        c.parse::<Version>(),
    ) {
        // Or sorting them could panic.
        assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        assert_eq!(a == b, a.cmp(&b).is_eq());
        assert!(!(a <= b && b <= c) || a <= c);
    }
    let accounts = with(next(), 40_000, "dyno:x:40000:40000:dyno:/app:/bin/sh");
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default().to_owned();
        (
            name,
            fields.nth(1).and_then(|id| id.trim().parse::<u32>().ok()),
        )
    };
    let dynos = accounts.lines().map(of);
    let dynos = dynos.filter(|(name, id)| name == "dyno" || *id == Some(40_000));
    assert_eq!(dynos.count(), 1);
    assert!(accounts.ends_with('\n'));
}
