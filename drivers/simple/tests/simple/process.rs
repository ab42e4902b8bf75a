//! The driver as a process: its socket, who may call, and when it ends.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    time::Duration,
};

use hsup_driver_kit::launch::{Launch, launch};
use hsup_proto::driver::GetInfoRequest;
use nix::unistd::{Pid, Uid};

use crate::fixture::{Driver, NOBODY, binary, command, connect, until_gone};

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

/// What a process of the user nobody gets to hear when it says hello.
#[expect(
    unsafe_code,
    reason = "the raw call changes the user of one thread only"
)]
fn hear_as_stranger(socket: &Path) -> Vec<u8> {
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        // SAFETY: plain numbers go in; the C library, which would change all threads, is
        // not involved, and this thread ends with this function.
        let changed =
            unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
        let mut stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        // The preface of HTTP/2 and an empty SETTINGS; the far end may be closed already.
        drop(stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"));
        let mut heard = vec![0; 64];
        let count = stream.read(&mut heard).unwrap_or_default();
        heard.truncate(count);
        heard
    })
    .join()
    .unwrap()
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "says that it was skipped")]
async fn a_stranger_is_refused_unless_allowed() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: only root can act as another user");
        return;
    }
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
