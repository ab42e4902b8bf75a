use std::{collections::BTreeMap, net::Ipv4Addr};

use hsup_driver_kit::proto::{Bind, Limits};
use test_case::test_case;

use super::*;

/// The record of a dyno, as the service would make it.
pub(crate) fn record() -> Record {
    // Format 1, of nobody, with a hash.
    let mut bytes = vec![0x08, 1, 0x1a, 2, b'd', b'1', 0x22, 2, b's', b'1', 0x7a, 32];
    bytes.extend([7; 32]);
    Record::from_bytes(&bytes).unwrap()
}

fn request(argv: &[&str]) -> StartRequest {
    let env = [("PORT", "5000"), ("SECRET", "hush")];
    StartRequest {
        dyno_id: "d1".to_owned(),
        supervisor_id: "s1".to_owned(),
        app: "shop".to_owned(),
        release: 42,
        process_type: "web".to_owned(),
        process_number: 3,
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..StartRequest::default()
    }
}

fn make(request: &StartRequest, kind: Kind, image_env: &[&str]) -> ContainerCreateBody {
    let artifact = Artifact {
        image: format!("sha256:{}", "a5".repeat(32)),
        kind,
    };
    let image_env: Vec<_> = image_env.iter().map(|name| (*name).to_owned()).collect();
    container(&Order {
        request,
        artifact: &artifact,
        record: &record(),
        home: "home",
        uid: 7,
        stdin: Stdin::Nothing,
        publish: Ipv4Addr::LOCALHOST.into(),
        network: None,
        image_env: &image_env,
        traits: Traits::default(),
    })
}

const INIT_WORDS: &str = "hsup-init /.hsup/status -1 0 0 PATH HOSTNAME TERM HOME container \
     /etc/heroku/dyno={\"dyno\":{\"id\":\"d1\",\"name\":\"web.3\"},\
     \"app\":{\"id\":\"\",\"name\":\"shop\"},\
     \"release\":{\"id\":42,\"commit\":\"\",\"description\":\"\"}}\n -- env";
const SLUG: Kind = Kind::Slug { uid: 1000, gid: 9 };

fn words(words: Option<Vec<String>>) -> Option<String> {
    words.map(|words| words.join(" "))
}

#[test_case(Kind::Plain, &["env"], "", None, Some("env"); "a plain image has its entrypoint")]
#[test_case(Kind::Plain, &["bash", "-c", "env"], "env", None, Some("/bin/sh -c env"); "and a shell")]
#[test_case(Kind::Plain, &[], "", None, None; "or its own command")]
#[test_case(SLUG, &["env"], "", Some("/.hsup/init"), Some(INIT_WORDS))]
#[test_case(Kind::Cnb, &[], "", Some("/cnb/process/web"), Some(""))]
#[test_case(Kind::Cnb, &["env"], "", Some("/cnb/lifecycle/launcher"), Some("-- env"))]
#[test_case(Kind::Cnb, &["bash", "-c", "env"], "env", Some("/cnb/lifecycle/launcher"), Some("env"))]
fn what_runs(kind: Kind, argv: &[&str], line: &str, entrypoint: Option<&str>, cmd: Option<&str>) {
    let request = StartRequest {
        shell_line: line.to_owned(),
        ..request(argv)
    };
    let made = make(&request, kind, &[]);
    assert_eq!(words(made.entrypoint).as_deref(), entrypoint);
    assert_eq!(words(made.cmd).as_deref(), cmd);
}

#[test]
fn a_slug_is_run_as_its_user_by_hsup_init() {
    let made = make(&request(&["env"]), SLUG, &[]);
    assert_eq!(made.user.as_deref(), Some("1000:9"));
    assert_eq!(made.working_dir.as_deref(), Some("/app"));
    assert_eq!(made.host_config.unwrap().init, Some(false));
    let made = make(&request(&["env"]), Kind::Plain, &[]);
    assert_eq!(made.user, None);
    assert_eq!(made.host_config.unwrap().init, Some(true));
}

#[test]
fn who_gets_a_terminal_begins_the_session() {
    let request = StartRequest {
        tty: true,
        ..request(&["bash", "-l"])
    };
    let made = make(&request, SLUG, &[]);
    let cmd = words(made.cmd).unwrap();
    assert!(
        cmd.starts_with("hsup-init /.hsup/status 0 24 80 PATH "),
        "{cmd}"
    );
    assert!(cmd.ends_with(" -- bash -l"), "{cmd}");
    let host = made.host_config.unwrap();
    assert_eq!(host.init, Some(false));
    assert_eq!(host.console_size, Some(vec![24, 80]));
}

#[test]
fn the_environment_is_the_requests() {
    let env = |kind, image: &[&str]| make(&request(&["env"]), kind, image).env.unwrap();
    let given = ["PORT=5000", "SECRET=hush"];
    let without = |names: &[&str]| {
        let all = given.iter().chain(names);
        all.map(|text| (*text).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        env(Kind::Plain, &[]),
        without(&["PATH", "HOSTNAME", "TERM"])
    );
    // What an image sets is its own.
    assert_eq!(env(Kind::Plain, &["PATH"]), without(&["HOSTNAME", "TERM"]));
    assert_eq!(env(Kind::Cnb, &[]), without(&["HOSTNAME", "TERM"]));
}

#[test]
fn the_launcher_makes_the_path_of_its_dynos() {
    let mut request = request(&["env"]);
    request.env = BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]);
    let made = make(&request, Kind::Cnb, &[]);
    assert_eq!(made.env.unwrap(), ["HOSTNAME", "TERM"]);
    let made = make(&request, Kind::Plain, &["PATH"]);
    assert_eq!(made.env.unwrap(), ["PATH=/bin", "HOSTNAME", "TERM"]);
}

#[test]
fn labels_say_whose_it_is_and_nothing_secret() {
    let labels = make(&request(&["env"]), Kind::Plain, &[]).labels.unwrap();
    assert_eq!(labels[DRIVER], "home");
    assert_eq!(labels[UID], "7");
    assert_eq!(labels[RECORD], hex::encode(&record().to_bytes()));
    for (label, value) in [
        ("hsup.dyno_id", "d1"),
        ("hsup.supervisor_id", "s1"),
        ("hsup.app", "shop"),
        ("hsup.release", "42"),
        ("hsup.process_type", "web"),
        ("hsup.process_number", "3"),
    ] {
        assert_eq!(labels[label], value, "{label}");
    }
    assert!(!labels.values().any(|value| value.contains("hush")));
}

#[test]
fn a_port_is_published_on_this_machine_only() {
    let made = make(&request(&["env"]), Kind::Plain, &[]);
    assert_eq!(made.exposed_ports.unwrap(), ["5000/tcp"]);
    let bindings = made.host_config.unwrap().port_bindings.unwrap();
    let binding = &bindings["5000/tcp"].as_ref().unwrap()[0];
    assert_eq!(binding.host_ip.as_deref(), Some("127.0.0.1"));
    assert_eq!(binding.host_port.as_deref(), Some(""));
}

#[test]
fn what_nobody_reaches_has_no_port_of_the_host() {
    let one_off = StartRequest {
        process_type: "run".to_owned(),
        ..request(&["env"])
    };
    let made = make(&one_off, SLUG, &[]);
    assert_eq!(made.labels.unwrap()[PORT], "");
    assert!(made.exposed_ports.is_none() && made.host_config.unwrap().port_bindings.is_none());
    assert!(made.env.unwrap().contains(&"PORT=5000".to_owned()));
}

#[test_case("5000", Some(5000))]
#[test_case("0", None)]
#[test_case("70000", None)]
#[test_case("http", None)]
fn what_is_no_port_is_not_published(text: &str, expected: Option<u16>) {
    assert_eq!(port(Some(text)), expected);
    let mut request = request(&["env"]);
    request.env.insert("PORT".to_owned(), text.to_owned());
    let made = make(&request, Kind::Plain, &[]);
    assert_eq!(made.exposed_ports.is_some(), expected.is_some());
}

#[test]
fn limits_are_the_engines_and_none_is_none() {
    let mut request = request(&["env"]);
    let host = make(&request, Kind::Plain, &[]).host_config.unwrap();
    assert_eq!(
        (host.memory, host.nano_cpus, host.pids_limit),
        (None, None, None)
    );
    request.limits = Some(Limits {
        memory_bytes: 1 << 29,
        cpu_millis: 1_500,
        pids: 64,
    });
    let host = make(&request, Kind::Plain, &[]).host_config.unwrap();
    assert_eq!(host.memory, Some(1 << 29));
    assert_eq!(host.memory_swap, host.memory);
    assert_eq!(host.nano_cpus, Some(1_500_000_000));
    assert_eq!(host.pids_limit, Some(65));
}

#[test]
fn binds_are_mounts() {
    let mut request = request(&["env"]);
    request.binds = vec![Bind {
        host_path: "/srv/data".to_owned(),
        dyno_path: "/data".to_owned(),
        writable: false,
    }];
    let host = make(&request, Kind::Plain, &[]).host_config.unwrap();
    let mount = &host.mounts.unwrap()[0];
    assert_eq!(mount.source.as_deref(), Some("/srv/data"));
    assert_eq!(mount.target.as_deref(), Some("/data"));
    assert_eq!(mount.read_only, Some(true));
}

#[test]
fn only_dockers_logs_are_chosen() {
    let request = request(&["env"]);
    let host = make(&request, Kind::Plain, &[]).host_config.unwrap();
    assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("local"));
    assert_eq!(
        host.restart_policy.unwrap().name,
        Some(RestartPolicyNameEnum::NO)
    );
}

#[test]
fn two_users_may_have_the_same_id() {
    assert_ne!(name(1, "d1"), name(2, "d1"));
}
