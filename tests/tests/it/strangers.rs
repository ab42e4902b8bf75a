//! The control socket, tried by another user of the machine.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
};

use hsup_tests::deadline;

use crate::app::{App, binaries};

/// Whoever runs nothing here; need not exist.
const STRANGER: u32 = 47_111;

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// How `hsupctl ps` ends for the stranger, as a member of this group, and what it says.
fn asked(app: &App, socket: &Path, group: u32) -> (Option<i32>, String) {
    let mut command = app.command(app.path("hsupctl").to_str().unwrap());
    command.current_dir("/").uid(STRANGER).gid(group);
    command.args(["-s", socket.to_str().unwrap(), "ps"]);
    let output = deadline::output(&mut command);
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
#[ignore = "needs root: it acts as another user"]
fn another_user_does_not_reach_the_control_socket() {
    let app = App::procfile("worker: exec sleep 1000\n");
    // Where cargo builds, a stranger may not go.
    fs::copy(binaries().join("hsupctl"), app.path("hsupctl")).unwrap();
    open_to_all(&app.path(""));
    let socket = app.path("open/control.sock");
    fs::create_dir(app.path("open")).unwrap();
    open_to_all(&app.path("open"));

    let hsup = app.start(&["-s", socket.to_str().unwrap()]);
    hsup.wait_up(&["worker.1"]);
    let (code, said) = asked(&app, &socket, STRANGER);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    // The group of the socket is root's here, and may do all.
    let (code, said) = asked(&app, &socket, 0);
    assert_eq!(code, Some(0), "{said}");
    hsup.interrupt();

    // The default place is a folder of its user's alone.
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let mut sockets = fs::read_dir(app.path("rt/hsup")).unwrap().flatten();
    let socket = sockets.find(|it| it.path().extension().is_some_and(|end| end == "sock"));
    open_to_all(&app.path("rt"));
    let (code, said) = asked(&app, &socket.unwrap().path(), 0);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    hsup.interrupt();
}
