//! Whether an archive that a stranger made stays where it is unpacked, and makes the layer of an
//! image that unpacks the same.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use super::{UnpackError, layer::layer, sort, tree::Tree};
use crate::store::Limits;

const LIMITS: Limits = Limits {
    max_download: 1 << 20,
    max_bytes: 1 << 20,
    max_file_bytes: 1 << 18,
    max_entries: 256,
};

/// With what a layer has more: the directories that an archive has not.
const MORE: Limits = Limits {
    max_bytes: 16 << 20,
    max_entries: 256 * 256,
    ..LIMITS
};

/// A tar archive, not compressed.
pub fn slug_archive(archive: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    let outside = folder.path().join("outside");
    fs::create_dir(&root).expect("the root");
    fs::create_dir(&outside).expect("a folder beside it");
    let tree = unpacked(archive, &root, &LIMITS);
    // Neither beside the root nor beside the app.
    assert_eq!(found(&outside), BTreeMap::new());
    assert_eq!(fs::read_dir(folder.path()).expect("a list").count(), 2);
    let beside = fs::read_dir(&root).expect("a list").flatten();
    assert!(beside.into_iter().all(|entry| entry.file_name() == "app"));
    let in_tree = found(&root);

    let mut written = Vec::new();
    let made = layer(archive, &mut written, &LIMITS, (7, 8));
    match (&tree, &made) {
        (Ok(()), Ok(_)) => {}
        (Err(UnpackError::Write(..)), _) => return,
        (Err(_), Err(_)) => return,
        differ => panic!("a tree and a layer differ: {differ:?}"),
    }
    // Whoever unpacks a layer follows it blindly.
    let again = folder.path().join("again");
    fs::create_dir(&again).expect("another root");
    unpacked(&written, &again, &MORE).expect("a layer is an archive");
    assert_eq!(found(&again), in_tree);
    let mut layer = tar::Archive::new(&written[..]);
    for entry in layer.entries().expect("an archive") {
        let entry = entry.expect("an entry");
        let header = entry.header();
        assert!(entry.path_bytes().starts_with(b"app"));
        assert_eq!(header.mode().expect("a mode") & !0o777, 0);
        assert_eq!(header.uid().expect("a number"), 7);
        assert_eq!(header.gid().expect("a number"), 8);
    }
}

fn unpacked(archive: &[u8], root: &Path, limits: &Limits) -> Result<(), UnpackError> {
    let mut tree = Tree::new(File::open(root).expect("the root").into())?;
    sort(archive, limits, &mut tree)?;
    tree.finish().map(drop)
}

/// What is in a folder: what each name is, with its permissions, and its text or where it leads.
fn found(folder: &Path) -> BTreeMap<Vec<u8>, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).expect("a list").flatten() {
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path).expect("it is there");
            let kind = metadata.file_type();
            assert!(kind.is_file() || kind.is_dir() || kind.is_symlink());
            assert!(kind.is_symlink() || metadata.permissions().mode() & 0o7000 == 0);
            let content = if kind.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else if kind.is_file() {
                // Who is not root may not read all of them.
                fs::read(&path).unwrap_or_default()
            } else {
                let target = fs::read_link(&path).expect("a link");
                target.into_os_string().into_encoded_bytes()
            };
            let name = path.strip_prefix(folder).expect("it is in there");
            let name = name.as_os_str().as_encoded_bytes().to_vec();
            found.insert(name, (metadata.mode(), content));
        }
    }
    found
}
