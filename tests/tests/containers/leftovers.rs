//! What was cut off in the middle is in nobody's way.

use std::{fs, io::Write as _, path::Path};

use hsup_tests::deadline::poll;

use crate::{
    caller::{Caller, how},
    host::Host,
    machine::Mount,
};

fn write(path: &Path, bytes: &[u8]) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_start_that_was_cut_off_while_it_wrote_keeps_neither_user_nor_address() {
    let host = Host::new();
    let driver = host.driver();
    let dir = host.dynos().join("0.cut");
    driver.kill();
    fs::create_dir(&dir).unwrap();
    write(&dir.join("held.json"), b"");
    let uid = host.first_uid().to_string();
    let address = host.subnet().replace("/24", "");
    for file in [
        Path::new("uids").join(uid),
        Path::new("subnets").join(address),
    ] {
        write(
            &host.path("work").join(file),
            dir.as_os_str().as_encoded_bytes(),
        );
    }
    let driver = host.driver();
    let freed = || host.names("uids").is_empty() && host.names("subnets").is_empty();
    assert!(poll(|| freed().then_some(())).is_some(), "{}", driver.log());
    assert!(!dir.exists());
    assert_eq!(
        Caller::new(&host.socket())
            .output("a", "echo well", |_| ())
            .0,
        "well\n"
    );
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_dynos_left_is_removed_while_the_driver_serves() {
    let host = Host::new();
    let driver = host.driver();
    driver.end();
    let containers = host.path("work/containers");
    let left = containers.join(host.first_uid().to_string());
    for folder in 0..30 {
        let folder = left.join(format!("upper/{folder}"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..2000 {
            fs::File::create(folder.join(file.to_string())).unwrap();
        }
    }
    // Its process is gone: no pid is that large.
    fs::create_dir_all(containers.join("probe-4194305/lower")).unwrap();
    let driver = host.driver();
    let seen = host.names("containers");
    assert!(
        seen.iter().any(|name| name.contains(".gone")),
        "it serves before that is removed: {seen:?}"
    );
    assert_eq!(host.says("echo well"), "well\n");
    let gone = poll(|| host.names("containers").is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}", host.names("containers"));
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_slugs_left_is_removed_while_the_driver_serves() {
    let host = Host::new();
    host.driver().end();
    let trash = host.path("work/slugs/trash");
    for folder in 0..30 {
        let folder = trash.join(format!("old/it/{folder}"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..2000 {
            fs::File::create(folder.join(file.to_string())).unwrap();
        }
    }
    // Nobody can remove it, and that keeps no driver from beginning.
    let busy = Mount::new("tmpfs", "size=1m", &trash.join("busy/it"));
    let driver = host.driver();
    assert_eq!(host.says("echo well"), "well\n");
    let left = poll(|| (host.names("slugs/trash") == ["busy"]).then_some(()));
    assert!(left.is_some(), "{:?}", host.names("slugs/trash"));
    let told = poll(|| driver.log().contains("slugs/trash/busy").then_some(()));
    assert!(told.is_some(), "{}", driver.log());
    driver.end();
    drop(busy);
    let driver = host.driver();
    let gone = poll(|| host.names("slugs/trash").is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}", host.names("slugs/trash"));
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_whose_driver_does_not_come_back_ends_when_it_has_lingered() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    for (id, linger_ms) in [("lingers", 1000), ("stays", 0)] {
        let started = caller.try_start(id, "exec sleep 1000 <&2", |request| {
            request.linger_ms = linger_ms;
        });
        drop(started.unwrap());
    }
    driver.kill();
    assert_eq!(host.names("uids").len(), 2);
    let other = host.path("socket/other.sock");
    let second = host.driver_at(&other, |_| ());
    let one = || (host.names("uids").len() == 1).then_some(());
    assert!(poll(one).is_some(), "{}", second.log());
    // How it ended is for its own driver to tell.
    let first = host.driver();
    let caller = Caller::new(&host.socket());
    assert_eq!(caller.ids(), ["lingers", "stays"]);
    assert_eq!(how(&caller.wait("lingers")), "SIGTERM");
    caller.remove_all();
    first.end();
    second.end();
    host.is_clean();
}
