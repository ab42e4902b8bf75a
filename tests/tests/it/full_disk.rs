//! The disk that holds hsup's state is full: what runs goes on, and it is told once.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{
    app::{App, Running, process},
    heroku::Shop,
};

/// A small file system of its own at the app's folder `disk`.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(app: &App, kib: u32) -> Self {
        let path = app.path("disk");
        fs::create_dir(&path).unwrap();
        let size = format!("size={kib}k");
        let (none, size) = (Some("none"), Some(size.as_str()));
        mount(none, &path, Some("tmpfs"), MsFlags::empty(), size).unwrap();
        Self { path }
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let filler = self.path.join("filler");
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(filler)
            .unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}

/// `hsup start` with its state on the disk.
fn start<'a>(app: &'a App, disk: &Disk) -> Running<'a> {
    let state = disk.path.join("state");
    app.control(&["--state-dir", state.to_str().unwrap()])
}

const UNSAVED: &str = "will not remember this";

#[test]
#[ignore = "mounts a small disk: needs root"]
fn a_release_on_a_full_disk_is_refused_and_touches_nothing() {
    let app = App::empty();
    let disk = Disk::mount(&app, 64);
    let worker = process("worker", "sleep 1000", 2);
    app.release(1, "", &worker);
    let hsup = start(&app, &disk);
    let before = hsup.wait_up(&["worker.1", "worker.2"]);
    disk.fill();
    app.release(2, "", &worker);
    hsup.wait_for_line("Release rejected, v1 keeps running: failed to save");
    hsup.wait_for("v2 in rejected, and v1 in loaded", || {
        let versions = ["rejected", "loaded"].map(|name| app.version_in(name));
        (versions == [Some(2), Some(1)]).then_some(())
    });
    assert!(app.last_error().unwrap().contains("history.json"));
    assert_eq!(hsup.wait_up(&["worker.1", "worker.2"]), before);
    hsup.wait_releases(&["v1 current"]);

    disk.free();
    app.release(2, "", &worker);
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["worker.1", "worker.2"]);
    hsup.interrupt();
}

#[test]
#[ignore = "mounts a small disk: needs root"]
fn a_release_of_heroku_comes_again_when_there_is_room() {
    let shop = Shop::deployed();
    let disk = Disk::mount(&shop.app, 64);
    let state = disk.path.join("state");
    let hsup = shop.start(&["--state-dir", state.to_str().unwrap()]);
    let before = hsup.wait_up(&["web.1"]);
    disk.fill();
    shop.heroku.set_config(&[("NAME", "two")]);
    let refused = "Release rejected, v2 keeps running: failed to save";
    hsup.wait_for_line(refused);
    shop.heroku.scale("web", 2);
    assert_eq!(hsup.wait_up(&["web.1", "web.2"])[0], before[0]);
    disk.free();
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
    hsup.wait_up(&["web.1", "web.2"]);
    assert_eq!(hsup.log().matches(refused).count(), 1, "{}", hsup.log());
    hsup.interrupt();
}

#[test]
#[ignore = "mounts a small disk: needs root"]
fn a_release_whose_dynos_cannot_be_journalled_touches_nothing() {
    let app = App::empty();
    let disk = Disk::mount(&app, 64);
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = start(&app, &disk);
    let before = hsup.wait_up(&["worker.1"]);
    app.release(2, "", &process("worker", "sleep 1000", 100));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    let reason = hsup.releases()[0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("there is no room to journal"), "{reason}");
    assert_eq!(hsup.releases()[0]["gap_ms"], 0);
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    hsup.interrupt();
}

#[test]
#[ignore = "mounts a small disk: needs root"]
fn a_dyno_that_cannot_be_journalled_waits_for_room_and_the_others_go_on() {
    let app = App::empty();
    let disk = Disk::mount(&app, 64);
    let two = [
        process("api", "sleep 1000", 1),
        process("worker", "sleep 1000", 1),
    ];
    app.release(1, "", &two.join(","));
    let hsup = start(&app, &disk);
    let before = hsup.wait_up(&["api.1", "worker.1"]);
    disk.fill();
    // The last page of the journal has room for some more.
    hsup.wait_for("a full journal", || {
        app.ctl(&["restart", "worker.1"]);
        hsup.log()
            .contains("failed to write the journal of dynos")
            .then_some(())
    });
    assert_eq!(hsup.dynos()[0]["dyno_id"], before[0].as_str());
    assert_eq!(hsup.dynos()[0]["state"], "up");
    disk.free();
    assert_eq!(hsup.wait_up(&["api.1", "worker.1"])[0], before[0]);
    hsup.interrupt();
}

#[test]
#[ignore = "mounts a small disk: needs root"]
fn what_could_not_be_saved_is_said_once_and_saved_when_there_is_room() {
    let app = App::empty();
    let disk = Disk::mount(&app, 64);
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = start(&app, &disk);
    hsup.wait_up(&["worker.1"]);
    disk.fill();
    for quantity in ["worker=2", "worker=3", "worker=2"] {
        assert!(app.ctl(&["scale", quantity]).status.success());
    }
    hsup.wait_for_line(UNSAVED);
    let said = hsup.log().matches(UNSAVED).count();
    assert_eq!(said, 1, "{}", hsup.log());
    disk.free();
    hsup.interrupt();
    let hsup = start(&app, &disk);
    hsup.wait_for_line("Scaled before: worker=2");
    hsup.wait_up(&["worker.1", "worker.2"]);
    // With room, nothing is left to be said.
    assert!(!hsup.log().contains(UNSAVED), "{}", hsup.log());
    hsup.interrupt();
}
