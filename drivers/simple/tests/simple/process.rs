//! The driver as a process: its socket, who may call, and when it ends.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io::{BufRead as _, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use hsup_driver_kit::launch::{Launch, launch};
use hsup_proto::driver::GetInfoRequest;
use nix::unistd::Pid;

use crate::fixture::{
    Driver, NOBODY, binary, command, connect, connect_as_stranger, run, until_gone,
};

#[tokio::test]
async fn a_socket_in_use_is_left_alone() {
    let driver = Driver::new();
    let _connection = driver.connect().await;
    let socket = driver.socket();
    let second = command(&[OsStr::new("--socket"), socket.as_os_str()]);
    let output = { second }.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&driver.pid().to_string()), "{text}");
    assert!(text.contains("drv.sock"), "{text}");
    driver.connect().await;
}

#[tokio::test]
async fn the_command_line_is_checked() {
    for (args, code, says) in [
        (&["--help"][..], 0, "Usage:"),
        (&["--version"], 0, "hsup-driver-simple 0."),
        (&["--nonsense"], 2, "--nonsense"),
        (&[], 1, "HSUP_DRIVER_SOCKET"),
    ] {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        let output = command(&args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(says), "{text}");
    }
}

#[tokio::test]
async fn a_child_with_a_descriptor_ends_by_itself_when_nobody_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("drv.sock");
    let child = launch(&Launch {
        program: binary().into(),
        argv0: "hsup-driver-simple".into(),
        socket: socket.clone(),
        hand_listener: true,
    })
    .unwrap();
    let connection = connect(&socket).await;
    let info = connection
        .client()
        .get_info(GetInfoRequest::default())
        .await;
    assert_eq!(info.unwrap().into_inner().name, "simple");
    drop(connection);
    until_gone(Pid::from_raw(child.pid())).await;
}

#[tokio::test]
async fn a_child_with_a_path_ends_by_itself_when_its_parent_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("drv.sock");
    let mut parent = run("bash")
        .args(["-c", "HSUP_DRIVER_SOCKET=$1 $0 & echo $!; wait"])
        .args([Path::new(binary()), &socket])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(parent.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    drop(connect(&socket).await);
    parent.kill().unwrap();
    parent.wait().unwrap();
    until_gone(Pid::from_raw(line.trim().parse().unwrap())).await;
    assert!(!socket.exists());
}

/// What a process of the user nobody gets to hear when it says hello.
fn hear_as_stranger(socket: &Path) -> Vec<u8> {
    let mut stream = connect_as_stranger(socket);
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // The preface of HTTP/2 and an empty SETTINGS; the far end may be closed already.
    drop(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"));
    let mut heard = vec![0; 64];
    let count = stream.read(&mut heard).unwrap_or_default();
    heard.truncate(count);
    heard
}

#[tokio::test]
async fn a_descriptor_that_is_no_listening_socket_is_an_error() {
    for (descriptor, says) in [
        ("3<&-", "Bad file descriptor"),
        ("3</dev/null", "Socket operation on non-socket"),
    ] {
        let line = format!("exec {descriptor}; LISTEN_FDS=1 exec $0");
        let output = run("bash").args(["-c", &line, binary()]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("LISTEN_FDS"), "{text}");
        // What is closed may by then be something of the driver's own, which is no socket.
        let says = [says, "Socket operation on non-socket"];
        assert!(says.iter().any(|says| text.contains(says)), "{text}");
    }
}

#[tokio::test]
#[ignore = "acts as another user: needs root"]
async fn a_stranger_is_refused_unless_allowed() {
    let allow = NOBODY.to_string();
    for (args, heard) in [(&[][..], false), (&["--allow-uid", allow.as_str()], true)] {
        let driver = Driver::with_args(args);
        driver.connect().await;
        // Open the way that the modes of files would bar.
        fs::set_permissions(driver.dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(driver.socket(), Permissions::from_mode(0o666)).unwrap();
        assert_eq!(
            !hear_as_stranger(&driver.socket()).is_empty(),
            heard,
            "{args:?}"
        );
    }
}
