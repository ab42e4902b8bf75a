//! The images of releases: what runs in those that are one, and what one of a slug is called.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use hsup_proto::driver::exit_status::How;

use tempfile::TempDir;

use super::fixture::{Driver, Dyno, Engine, output, write};

/// As the launcher of Cloud Native Buildpacks: a process is chosen by the name that it is called
/// by, a line is run by a shell, and words behind `--` as they are.
const LAUNCHER: &str = r#"#!/bin/sh
export FROM=buildpacks
case $0 in
    /cnb/process/web) exec sh -c 'echo "web of $FROM at $PORT"; exit 3' ;;
    /cnb/process/*) echo "no process ${0##*/}"; exit 127 ;;
esac
if [ "$1" = -- ]; then
    shift
    echo "words of $FROM"
    exec "$@"
fi
exec sh -c "$1"
"#;

/// What buildpacks leave of themselves.
fn buildpacks(root: &Path) {
    for folder in ["cnb", "cnb/lifecycle", "cnb/process"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    program(&root.join("cnb/lifecycle/launcher"), LAUNCHER);
    for process in ["web", "worker"] {
        symlink(
            "/cnb/lifecycle/launcher",
            root.join("cnb/process").join(process),
        )
        .unwrap();
    }
}

fn program(path: &Path, text: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What a dyno says, and how it ends.
async fn says(dyno: &Dyno, driver: &Driver) -> (String, i32) {
    let mut client = driver.client().await;
    dyno.start(&mut client).await;
    let status = dyno.wait(&mut client).await;
    dyno.remove(&mut client).await;
    let Some(How::Code(code)) = status.how else {
        panic!("{status:?}");
    };
    (String::from_utf8(dyno.rest()).unwrap(), code)
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn an_image_of_buildpacks_runs_its_processes_by_name() {
    let engine = Engine::start().await;
    let name = "hsup-test/buildpacks:1";
    let changes = [
        "LABEL io.buildpacks.build.metadata={}",
        r#"ENTRYPOINT ["/cnb/process/worker"]"#,
    ];
    engine.import(name, buildpacks, &changes);
    let driver = Driver::start(&engine);
    let artifact = driver.build(name).await.unwrap();
    let dyno = |id: &str, line: &str, argv: &[&str]| {
        let mut dyno = Dyno::new(&engine, id, line);
        dyno.request.artifact.clone_from(&artifact);
        dyno.request.shell_line = line.to_owned();
        dyno.request.argv = argv.iter().map(|word| (*word).to_owned()).collect();
        dyno
    };
    let web = dyno("d-web", "", &[]);
    assert_eq!(
        says(&web, &driver).await,
        ("web of buildpacks at 5000\n".to_owned(), 3)
    );
    let line = r#"echo "one  $FROM"; exit 4"#;
    let line = dyno("d-line", line, &["bash", "-c", line]);
    assert_eq!(
        says(&line, &driver).await,
        ("one  buildpacks\n".to_owned(), 4)
    );
    let words = dyno("d-words", "", &["echo", "two  words"]);
    assert_eq!(
        says(&words, &driver).await,
        ("words of buildpacks\ntwo  words\n".to_owned(), 0)
    );
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn an_images_entrypoint_is_respected() {
    let engine = Engine::start().await;
    let name = "hsup-test/entrypoint:1";
    let add = |root: &Path| {
        program(
            &root.join("bin/entry"),
            "#!/bin/sh\necho entered\nexec \"$@\"\n",
        );
    };
    engine.import(name, add, &[r#"ENTRYPOINT ["/bin/entry"]"#]);
    let driver = Driver::start(&engine);
    let line = r#"echo "line in $0""#;
    let mut dyno = Dyno::new(&engine, "d-entry", line);
    dyno.request.artifact = driver.build(name).await.unwrap();
    dyno.request.shell_line = line.to_owned();
    assert_eq!(
        says(&dyno, &driver).await,
        ("entered\nline in /bin/sh\n".to_owned(), 0)
    );
    assert_eq!(engine.containers(), "");
}

#[tokio::test]
#[ignore = "needs root and dockerd"]
async fn a_rollback_gives_an_image_the_name_of_its_release() {
    let engine = Engine::start().await;
    let mut driver = Driver::start(&engine);
    let folder = TempDir::with_prefix("hsup").unwrap();
    write(&folder.path().join("Procfile"), "web: true\n");
    let artifact = driver.build_slug(folder.path()).await.unwrap();
    let run = |id: &str, release: u64| {
        let mut dyno = Dyno::new(&engine, id, "echo started");
        dyno.request.artifact.clone_from(&artifact);
        dyno.request.release = release;
        dyno
    };
    let started = ("started\n".to_owned(), 0);
    assert_eq!(says(&run("d-4", 4), &driver).await, started);
    // Whoever built it does not matter.
    driver.replace();
    assert_eq!(says(&run("d-6", 6), &driver).await, started);
    let names = ["image", "inspect", "--format", "{{join .RepoTags \" \"}}"];
    let image = artifact.splitn(4, ':').last().unwrap();
    let names = output(engine.docker(&names).arg(image));
    let mut names: Vec<_> = names.split(' ').collect();
    names.sort_unstable();
    assert_eq!(names, ["hsup/shop:v1", "hsup/shop:v4", "hsup/shop:v6"]);
}
