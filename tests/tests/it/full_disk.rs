//! The disk that holds hsup's state is full: what runs goes on, and it is told once.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use crate::{
    app::{App, Running, binaries, process},
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

/// An app with two workers of v1 that run, and their ids.
fn with_workers<'a>(app: &'a App, disk: &Disk) -> (Running<'a>, Vec<String>) {
    app.release(1, "", &workers());
    let hsup = start(app, disk);
    let ids = hsup.wait_up(&["worker.1", "worker.2"]);
    (hsup, ids)
}

fn workers() -> String {
    process("worker", "sleep 1000", 2)
}

const UNSAVED: &str = "will not remember this";

#[test]
#[ignore = "mounts a small disk: needs root"]
fn a_release_on_a_full_disk_is_refused_and_touches_nothing() {
    let app = App::empty();
    let disk = Disk::mount(&app, 64);
    let (hsup, before) = with_workers(&app, &disk);
    disk.fill();
    app.release(2, "", &workers());
    hsup.wait_for_line("Release rejected, v1 keeps running: failed to save");
    hsup.wait_for("v2 in rejected, and v1 in loaded", || {
        let versions = ["rejected", "loaded"].map(|name| app.version_in(name));
        (versions == [Some(2), Some(1)]).then_some(())
    });
    assert!(app.last_error().unwrap().contains("history.json"));
    assert_eq!(hsup.wait_up(&["worker.1", "worker.2"]), before);
    hsup.wait_releases(&["v1 current"]);

    disk.free();
    app.release(2, "", &workers());
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["worker.1", "worker.2"]);
    hsup.interrupt();
}

#[test]
#[ignore = "mounts a small disk: needs root"]
fn a_start_on_a_full_disk_goes_on_with_what_survived() {
    let app = App::empty();
    let disk = Disk::mount(&app, 64);
    let (hsup, before) = with_workers(&app, &disk);
    hsup.kill();
    disk.fill();
    app.write("ctl/loaded", &app.text(2, "", &workers()));
    let hsup = start(&app, &disk);
    hsup.wait_for_line("Release rejected, v1 keeps running: failed to save");
    assert_eq!(hsup.wait_up(&["worker.1", "worker.2"]), before);
    disk.free();
    hsup.interrupt();
}

#[test]
#[ignore = "mounts a small disk: needs root"]
fn a_procfile_that_cannot_be_taken_in_leaves_what_survived_running() {
    let app = App::procfile("worker: sleep 1000\n");
    let disk = Disk::mount(&app, 64);
    let state = disk.path.join("state");
    let arguments = ["--linger", "60s", "--state-dir", state.to_str().unwrap()];
    let hsup = app.start(&arguments);
    let before = hsup.wait_up(&["worker.1"]);
    hsup.kill();
    disk.fill();
    app.write("app/Procfile", "worker: sleep 1001\n");
    let hsup = app.start(&arguments);
    hsup.wait_for_line("Release rejected, v1 keeps running: failed to save");
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    disk.free();
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
    let refused = "Release v3 cannot be taken in, trying again, v2 keeps running: failed to save";
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
fn a_first_release_of_heroku_that_comes_again_begins_with_the_good_one() {
    let shop = Shop::deployed();
    let disk = Disk::mount(&shop.app, 64);
    let state = disk.path.join("state");
    let state = ["--state-dir", state.to_str().unwrap()];
    let hsup = shop.start(&state);
    hsup.wait_up(&["web.1"]);
    // One that ends in order leaves a journal that makes room when it is read.
    hsup.kill();
    disk.fill();
    shop.heroku.set_config(&[("NAME", "two")]);
    let hsup = shop.start(&state);
    hsup.wait_for_line(
        "Release v3 cannot be taken in, trying again, running v2, the last good one: failed to save",
    );
    hsup.wait_up(&["web.1"]);
    disk.free();
    hsup.wait_for_line("Release v3 created by Heroku");
    hsup.wait_releases(&["v3 current", "v2 superseded"]);
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

/// Whether a running hsup may write into files: what it cannot is as on a full disk, and needs no
/// small disk.
fn let_write(hsup: &Running<'_>, may: bool) {
    let limit = libc::rlimit64 {
        rlim_cur: if may { libc::RLIM64_INFINITY } else { 0 },
        rlim_max: libc::RLIM64_INFINITY,
    };
    #[expect(unsafe_code, reason = "a system call without a wrapper")]
    // SAFETY: the kernel reads the limit, which lives until then, and writes none.
    let set = unsafe {
        libc::prlimit64(
            hsup.pid(),
            libc::RLIMIT_FSIZE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(set, 0, "{}", Errno::last());
}

/// A worker whose end comes while hsup cannot write it down, and the arguments of its hsup.
fn ended_unwritten(app: &App) -> (Running<'_>, [&'static str; 4], String) {
    let arguments = ["--linger", "60s", "--restart-backoff", "1h..1h"];
    let hsup = start_with_calls(app, &arguments);
    let id = hsup.wait_up(&["worker.1"]).remove(0);
    let_write(&hsup, false);
    app.write("app/go", "");
    hsup.wait_for("the end", || {
        (hsup.dynos()[0]["state"] == "crashed").then_some(())
    });
    (hsup, arguments, id)
}

/// A dyno that ends with 7, once for each time it is told to.
const ENDS_WITH_7: &str = "worker: until rm go 2> /dev/null; do sleep 0.05; done; exit 7\n";

fn start_with_calls<'a>(app: &'a App, arguments: &[&str]) -> Running<'a> {
    let driver = binaries().join("hsup-driver-fault");
    let mut all = vec!["-d", driver.to_str().unwrap()];
    all.extend(arguments);
    app.start(&all)
}

#[test]
fn an_end_that_could_not_be_written_is_heard_of_from_the_driver_by_the_next_hsup() {
    let app = App::procfile(ENDS_WITH_7);
    let (hsup, arguments, id) = ended_unwritten(&app);
    assert_eq!(app.calls("remove"), [""; 0], "{id}");
    hsup.kill();
    let hsup = start_with_calls(&app, &arguments);
    hsup.wait_for_line("Process exited with status 7");
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}

#[test]
fn a_dyno_is_forgotten_once_its_end_could_be_written() {
    let app = App::procfile(ENDS_WITH_7);
    let (hsup, _, id) = ended_unwritten(&app);
    let io = |hsup: &Running<'_>| {
        let runs = fs::read_dir(hsup.app.path("rt/hsup/run")).unwrap();
        runs.flatten()
            .any(|run| run.path().join("io").join(&id).exists())
    };
    assert!(io(&hsup), "the FIFOs of {id} are gone");
    let_write(&hsup, true);
    assert!(app.ctl(&["restart"]).status.success());
    hsup.wait_for("the Remove", || {
        (app.calls("remove").len() == 1).then_some(())
    });
    assert!(!io(&hsup), "the FIFOs of {id} are left");
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}
