use proptest::prelude::*;
use test_case::test_case;

use super::*;

/// The example of the original's README, as its shell command writes it.
const README: &str = r#"{
    "Version": 1,
    "Env": {
        "NAME": "CONTENTS"
    },
    "Slug": "sample-slug.tgz",
    "Stack": "cedar-14",
    "Processes": [
        {
            "Args": ["./web-server", "arg"],
            "Quantity": 2,
            "Type": "web"
        },
        {
            "Args": ["./worker", "arg"],
            "Quantity": 2,
            "Type": "worker"
        }
    ]
}
"#;

fn read(text: &str) -> ControlFile {
    parse(text.as_bytes()).unwrap()
}

fn error(text: &str) -> String {
    let error = parse(text.as_bytes()).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    error.to_string()
}

/// A file with one process and these further members.
fn with(members: &str) -> String {
    format!(r#"{{"Processes": [{{"Type": "web", "Args": ["x"]}}], {members}}}"#)
}

#[test]
fn the_original_example_is_read() {
    let ControlFile { release, warnings } = read(README);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(
        release,
        Release {
            app: String::new(),
            version: 1,
            config: [("NAME", "CONTENTS")].into_iter().collect(),
            slug: Some(Slug::new("sample-slug.tgz")),
            slug_checksum: None,
            stack: "cedar-14".into(),
            image: None,
            limits: Limits::default(),
            log_target: None,
            processes: vec![
                Process::new("web".parse().unwrap(), "./web-server arg", 2),
                Process::new("worker".parse().unwrap(), "./worker arg", 2),
            ],
            metadata: None,
        }
    );
}

#[test]
fn every_key_is_read() {
    let digits = "Ab".repeat(32);
    let release = read(&with(&format!(
        r#""Name": "shop", "Image": "shop:1", "SlugChecksum": "sha256:{digits}", "Slug": "s",
           "Limits": {{"MemoryBytes": 536870912, "CpuMillis": 500, "Pids": 0}},
           "LogplexURL": "https://token@logs.example/logs""#
    )))
    .release;
    assert_eq!(release.app, "shop");
    assert_eq!(release.image.as_deref(), Some("shop:1"));
    assert_eq!(
        release.slug_checksum,
        Some(format!("SHA256:{}", "ab".repeat(32)))
    );
    assert_eq!(release.limits.memory_bytes, Some(536_870_912));
    assert_eq!(release.limits.cpu_millis, Some(500));
    assert_eq!(release.limits.pids, None);
    let target = release.log_target.unwrap();
    assert_eq!(target.expose(), "https://token@logs.example/logs");
}

#[test]
fn keys_match_in_any_case_and_null_is_nothing() {
    let text = r#"{"VERSION": 3, "env": {"A": null, "a": "b"}, "Slug": null, "Stack": null,
        "LogplexUrl": null, "Limits": null, "Name": null,
        "processes": [{"type": "web", "ARGS": ["x", null], "quantity": null}]}"#;
    let ControlFile { release, warnings } = read(text);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(release.version, 3);
    let config: Vec<_> = release.config.iter().collect();
    assert_eq!(config, [("A", ""), ("a", "b")]);
    assert_eq!(release.slug, None);
    assert_eq!(release.processes[0].quantity, 0);
}

#[test]
fn what_does_no_harm_is_a_warning() {
    let text = r#"{"Verison": 1, "version": 2, "Version": 3, "Comment": "hunter2",
        "Env": {"A": "hunter2", "A": "b"}, "SlugChecksum": null,
        "Limits": {"Memory": 1, "pid": 2},
        "Processes": [{"Type": "web", "Args": ["x"]},
                      {"Type": "worker", "Args": ["x"], "Quantty": 1},
                      {"Type": "release", "Args": ["x"], "Quantity": 1}]}"#;
    let ControlFile { release, warnings } = read(text);
    assert_eq!(release.version, 3);
    assert_eq!(release.config.get("A"), Some("b"));
    assert_eq!(release.processes[2].quantity, 0);
    assert_eq!(
        warnings,
        [
            "Verison: unknown key, did you mean `Version`?",
            "Version: given twice: the last one counts",
            "Comment: unknown key, ignored",
            "Env.A: given twice: the last one counts",
            "Limits.Memory: unknown key, ignored",
            "Limits.pid: unknown key, did you mean `Pids`?",
            "Processes[1].Quantty: unknown key, did you mean `Quantity`?",
            "Processes[2].Quantity: `release` is the command of the release phase and gets no dyno",
        ]
    );
}

#[test]
fn an_error_says_where_it_is() {
    let text = "{\n  \"Version\": 1,\n  \"Processes\": [\n    {\n      \"Type\": \"web\",\n      \"Args\": [\"x\"],\n      \"Quantity\":     -1\n    }\n  ]\n}\n";
    let error = parse(text.as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 7 column 23, at Processes[0].Quantity: invalid value: integer -1, expected 0 to 10000"
    );
}

#[test_case(r#"{"Version": -1}"#, "line 1 column 13, at Version: invalid value: integer -1, expected 0 to 18446744073709551615"; "negative version")]
#[test_case(r#"{"Version": 1.5}"#, "line 1 column 13, at Version: invalid value: number 1.5, expected 0 to 18446744073709551615"; "fraction")]
#[test_case(r#"{"Version": "hunter2"}"#, "line 1 column 13, at Version: invalid type: string, expected a whole number from 0 to 18446744073709551615"; "version as a string")]
#[test_case(r#"{"Env": {"é": "x", "A": 42}}"#, "line 1 column 25, at Env.A: invalid type: number, expected a string: put it in quotes"; "a number in the environment")]
#[test_case(r#"{"Env": {"A.b": {"hunter2": 1}}}"#, "line 1 column 17, at Env[\"A.b\"]: invalid type: object, expected a string"; "an object in the environment")]
#[test_case(r#"{"Env": ["hunter2"]}"#, "line 1 column 9, at Env: invalid type: list, expected an object"; "the environment is a list")]
#[test_case(r#"{"Env": {"A=B": "hunter2"}}"#, "line 1 column 17, at Env[\"A=…\"]: invalid name: a config var needs a name, without `=` and without NUL characters"; "an equals sign in a name")]
#[test_case(r#"{"Env": {"A=hunter2": ""}}"#, "line 1 column 23, at Env[\"A=…\"]: invalid name: a config var needs a name, without `=` and without NUL characters"; "a value in a name")]
#[test_case(r#"{"Env": {"A=hunter2": x}}"#, "line 1 column 23, at Env[\"A=…\"]: expected value"; "a value in a name of a text that is no JSON")]
#[test_case(r#"{"Env": {"": "hunter2"}}"#, "line 1 column 14, at Env[\"\"]: invalid name: a config var needs a name, without `=` and without NUL characters"; "no name")]
#[test_case(r#"{"Env": {"A": "hunter2\u0000"}}"#, "line 1 column 15, at Env.A: invalid value: a string with a NUL character"; "nul in a value")]
#[test_case(r#"{"Env": {"A": "hunter2\ud800"}}"#, "line 1 column 15, at Env.A: invalid value: a string with an invalid escape sequence"; "half a character")]
#[test_case(r#"{"Env": {"PORT": "hunter2"}}"#, "line 1 column 18, at Env.PORT: invalid value: expected a port number from 1 to 65535"; "port")]
#[test_case(r#"{"Name": "../../etc"}"#, "line 1 column 10, at Name: `../../etc` is not a name for an app: expected 1 to 63 ASCII letters, digits, `-`, `_` and `.`, starting with a letter or digit"; "name")]
#[test_case(r#"{"SlugChecksum": "MD5:00"}"#, "line 1 column 18, at SlugChecksum: invalid value: expected `SHA256:` and 64 hexadecimal digits"; "checksum")]
#[test_case(r#"{"LogplexURL": "hunter2"}"#, "line 1 column 16, at LogplexURL: not a log target: expected a URL such as `https://token:…@host/logs`"; "log target")]
#[test_case(r#"{"Limits": {"Pids": 4294967296}}"#, "line 1 column 21, at Limits.Pids: invalid value: integer 4294967296, expected 0 to 4294967295"; "limit")]
#[test_case(r#"{"Limits": 5}"#, "line 1 column 12, at Limits: invalid type: number, expected an object"; "limits")]
#[test_case("{}", "line 1 column 1, at Processes: there is no process: write at least one, such as {\"Type\": \"web\", \"Args\": [\"bin/server\"], \"Quantity\": 1}"; "no processes")]
#[test_case(r#"{"Processes": []}"#, "line 1 column 15, at Processes: there is no process: write at least one, such as {\"Type\": \"web\", \"Args\": [\"bin/server\"], \"Quantity\": 1}"; "empty processes")]
#[test_case(r#"{"Processes": [{"Type": "release", "Args": ["x"]}]}"#, "line 1 column 15, at Processes: there is no process but `release`, which is run once per release and gets no dyno"; "only the release phase")]
#[test_case(r#"{"Processes": {"Type": "web"}}"#, "line 1 column 15, at Processes: invalid type: object, expected a list"; "one process without its list")]
#[test_case(r#"{"Processes": [{"Args": ["x"]}]}"#, "line 1 column 16, at Processes[0].Type: a process needs a type, such as `web`"; "no type")]
#[test_case(r#"{"Processes": [{"Type": "a/b", "Args": ["x"]}]}"#, "line 1 column 25, at Processes[0].Type: invalid value: `a/b` is not a process type: expected 1 to 128 ASCII letters, digits, `-` and `_`"; "slash in a type")]
#[test_case(r#"{"Processes": [{"Type": "..", "Args": ["x"]}]}"#, "line 1 column 25, at Processes[0].Type: invalid value: `..` is not a process type: expected 1 to 128 ASCII letters, digits, `-` and `_`"; "dots as a type")]
#[test_case(r#"{"Processes": [{"Type": "web", "Args": []}]}"#, "line 1 column 40, at Processes[0].Args: there is no command: write what to run, such as [\"bin/server\"]"; "no args")]
#[test_case(r#"{"Processes": [{"Type": "web"}]}"#, "line 1 column 16, at Processes[0].Args: there is no command: write what to run, such as [\"bin/server\"]"; "args missing")]
#[test_case(r#"{"Processes": [{"Type": "web", "Args": ["a", "b\u0000"]}]}"#, "line 1 column 46, at Processes[0].Args[1]: invalid value: a string with a NUL character"; "nul in args")]
#[test_case(r#"{"Processes": [{"Type": "web", "Args": "x"}]}"#, "line 1 column 40, at Processes[0].Args: invalid type: string, expected a list"; "args as a string")]
#[test_case(r#"{"Processes": [{"Type": "web", "Args": ["x"], "Quantity": 10001}]}"#, "line 1 column 59, at Processes[0].Quantity: invalid value: integer 10001, expected 0 to 10000"; "too many")]
#[test_case(r#"{"Processes": [{"Type": "web", "Args": ["x"]}, {"Type": "web", "Args": ["y"]}]}"#, "line 1 column 48, at Processes[1]: the process type `web` is there already, at Processes[0]"; "twice")]
#[test_case(r#"{"Processes": [3]}"#, "line 1 column 16, at Processes[0]: invalid type: number, expected an object"; "a number as a process")]
#[test_case("[]", "line 1 column 1, at the top: invalid type: list, expected an object"; "a list")]
#[test_case("null", "line 1 column 1, at the top: invalid type: null, expected an object"; "null")]
#[test_case("  \n", "the file is empty: write a release as JSON"; "blank")]
#[test_case("{\n \"Env\": {\"A\": \"hunter2", "line 2 column 22, at Env.A: EOF while parsing a string"; "truncated")]
#[test_case("{\"Env\": {\"A\": hunter2}}", "line 1 column 15, at Env.A: expected value"; "no quotes")]
#[test_case("{} {}", "line 1 column 4: trailing characters"; "two texts")]
#[test_case("{\"a\": 1,}", "line 1 column 9: key must be a string"; "trailing comma")]
fn a_bad_file_is_refused(text: &str, message: &str) {
    assert_eq!(error(text), message);
}

#[test]
fn a_file_that_is_no_text_is_refused() {
    let error = parse(b"{\n\"\xc3\xa9\xff\"}").unwrap_err();
    assert_eq!(error.to_string(), "line 2 column 3: the text is not UTF-8");
    let large = vec![b' '; usize::try_from(MAX_SIZE).unwrap() + 1];
    assert_eq!(parse(&large), Err(ParseControlFileError::TooLarge));
}

#[test]
fn every_beginning_of_a_file_is_told_from_a_wrong_one() {
    let text = README.trim_end();
    for end in 0..text.len() {
        let error = parse(&text.as_bytes()[..end]).unwrap_err();
        assert!(error.is_truncated(), "{end}: {error}");
    }
    assert!(!parse(b"{]").unwrap_err().is_truncated());
    assert!(!parse(b"{}").unwrap_err().is_truncated());
}

#[test]
fn deep_nesting_is_no_trouble() {
    let deep = with(&format!(
        r#""X": {}{}"#,
        "[".repeat(200_000),
        "]".repeat(200_000)
    ));
    assert_eq!(read(&deep).warnings, ["X: unknown key, ignored"]);
    for opening in ["[", "{\"key\":", "{\"=\":"] {
        let said = error(&opening.repeat(100_000));
        assert!(said.contains('…') && said.len() < 400, "{said}");
    }
}

/// Any JSON value, with the words of control files in it more often than chance has them.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let word = prop_oneof![
        prop::sample::select([KEYS, PROCESS_KEYS, LIMIT_KEYS].concat()).prop_map(str::to_owned),
        ".{0,6}",
    ];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        word.clone().prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((word.clone(), inner), 0..6)
                .prop_map(|members| { serde_json::Value::Object(members.into_iter().collect()) }),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(text: Vec<u8>) {
        let _unused = parse(&text).is_ok();
    }

    #[test]
    fn no_json_makes_it_panic(value in value()) {
        let _unused = parse(value.to_string().as_bytes()).is_ok();
    }

    #[test]
    fn no_error_shows_a_config_var(
        before in "[a-z]{0,5}",
        wrong in prop::sample::select(&["[\"hunter2\"]", "{\"hunter2\": 1}", "\"hunter2\\ud800\"", "\"hunter2", "hunter2", "\"hunter2\\u0000\""][..]),
    ) {
        let text = format!("{{\"Env\": {{\"X{before}\": {wrong}}}}}");
        let error = parse(text.as_bytes()).unwrap_err();
        let shown = format!("{error} {error:?}");
        prop_assert!(!shown.contains("hunter2"), "{}", shown);
    }

    #[test]
    fn what_is_written_is_read(
        version: u64,
        config in prop::collection::btree_map("[^=\0]{1,10}", "[^\0]{0,10}", 0..5),
        command in "[^\0 ]{1,10}",
        quantity in 0..=MAX_QUANTITY,
    ) {
        prop_assume!(!config.contains_key("PORT") && !command.trim().is_empty());
        let text = serde_json::json!({
            "Version": version,
            "Env": config,
            "Processes": [{"Type": "web", "Args": [command, "b c"], "Quantity": quantity}],
        });
        let ControlFile { release, warnings } = parse(text.to_string().as_bytes()).unwrap();
        prop_assert!(warnings.is_empty());
        prop_assert_eq!(release.version, version);
        prop_assert_eq!(release.config, config.into());
        prop_assert_eq!(&release.processes[0].command, &format!("{command} b c"));
        prop_assert_eq!(release.processes[0].quantity, quantity);
    }
}
