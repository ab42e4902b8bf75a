use test_case::test_case;

use super::*;

const SHA: &str = "3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b";
const ORIGINAL: &str = "\
- name: cedar-14
  version: v9
  url: https://example.com/cedar-14-v9.img.gz
  md5: 9e107d9d372bb6826bd81d3542a419d6
  primary: false
- {name: cedar-14, version: v10, url: 'https://example.com/cedar-14-v10.img.gz'}
- {name: cedar, version: 7, url: 'file:///srv/cedar.img', primary: true}
";

fn parsed(text: &str) -> Manifest {
    Manifest::parse(text, "/m.yml").unwrap()
}

fn error(text: &str) -> String {
    Manifest::parse(text, "/m.yml").unwrap_err().to_string()
}

/// An entry of version 2, with other fields before those that it needs.
fn second(fields: &str) -> String {
    format!("version: 2\nstacks:\n- {{{fields}}}\n")
}

fn chosen(manifest: &Manifest, name: &str, arch: &str) -> String {
    let entry = manifest.choose(&name.parse().unwrap(), arch).unwrap();
    entry.version.to_string()
}

fn warnings<'a>(manifest: &'a Manifest, name: &str) -> Vec<&'a str> {
    manifest.warnings_of(&name.parse().unwrap()).collect()
}

#[test]
fn the_originals_shape() {
    let manifest = parsed(ORIGINAL);
    assert_eq!(chosen(&manifest, "cedar-14", "amd64"), "v10");
    assert_eq!(chosen(&manifest, "cedar", "arm64"), "7");
    let first = &manifest.entries[0];
    assert_eq!(first.format, Format::Image);
    assert_eq!(
        first.checksum.unwrap().to_string(),
        "md5 9e107d9d372bb6826bd81d3542a419d6"
    );
    let warnings = warnings(&manifest, "cedar-14");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("entry 1 (`cedar-14`): has only an md5"));
    assert!(warnings[1].contains("entry 2 (`cedar-14`): has no checksum"));
}

#[test]
fn version_2() {
    let fields = format!(
        "name: heroku-24, version: 1.2.3, arch: x86_64, primary: true, format: rootfs-tar, \
         url: 'https://h/x.tar.zst', sha256: {SHA}, size: 77, uid: 1000"
    );
    let manifest = parsed(&second(&fields));
    let expected = Entry {
        name: "heroku-24".parse().unwrap(),
        version: "1.2.3".parse().unwrap(),
        arch: Some("amd64".to_owned()),
        primary: true,
        format: Format::RootfsTar,
        url: "https://h/x.tar.zst".to_owned(),
        checksum: Some(Checksum::Sha256(from_hex(SHA).unwrap())),
        size: Some(77),
        uid: Some(1000),
    };
    assert_eq!(manifest.entries, [expected]);
    assert_eq!(manifest.warnings, []);
}

#[test]
fn a_primary_goes_before_a_newer_one() {
    let manifest = parsed(&ORIGINAL.replace("primary: false", "primary: true"));
    assert_eq!(chosen(&manifest, "cedar-14", "amd64"), "v9");
}

#[test]
fn what_is_for_another_machine_or_driver_is_passed_over() {
    let text = "version: 2\nstacks:\n\
        - {name: s, version: 1, arch: arm64, format: directory, url: 'file:///a'}\n\
        - {name: s, version: 2, arch: amd64, format: directory, url: 'file:///b'}\n\
        - {name: s, version: 3, format: docker, ref: 'docker.io/x@sha256:00'}\n";
    let manifest = parsed(text);
    assert_eq!(chosen(&manifest, "s", "arm64"), "1");
    assert_eq!(chosen(&manifest, "s", "amd64"), "2");
    let name = "s".parse().unwrap();
    let expected = [
        "version 1: it is for arm64",
        "version 2: it is for amd64",
        "version 3: format `docker` is not read by this driver",
    ];
    let expected = NotChosen::PassedOver(expected.map(str::to_owned).to_vec());
    assert_eq!(manifest.choose(&name, "riscv64"), Err(expected));
    let found = |version: &str| manifest.entry(&name, &version.parse().unwrap(), "amd64");
    assert!(found("2").is_some());
    assert!(found("1").is_none());
    assert!(found("4").is_none());
    let unknown = manifest.choose(&"t".parse().unwrap(), "amd64");
    assert_eq!(unknown, Err(NotChosen::Unknown(vec![name])));
}

#[test]
fn unknown_fields_are_warnings() {
    let text = "version: 2\nowner: me\nstacks:\n\
        - {name: s, version: 1, format: directory, url: 'file:///a', colour: red}\n";
    let manifest = parsed(text);
    let expected = [
        "/m.yml: field `owner` is not known, and ignored",
        "/m.yml, entry 1 (`s`): field `colour` is not known, and ignored",
    ];
    assert_eq!(warnings(&manifest, "s"), expected);
    // Of one stack, nobody is told who uses another.
    assert_eq!(warnings(&manifest, "t"), expected[..1]);
}

#[test_case("name: s, version: 1, format: rootfs-tar, url: 'https://h/x'",
    "/m.yml, entry 1 (`s`): field `sha256` is missing, and needed for what is fetched over http"
    ; "no checksum")]
#[test_case("name: s, version: 1, format: rootfs-tar, url: 'https://h/x', \
     md5: 9e107d9d372bb6826bd81d3542a419d6",
    "/m.yml, entry 1 (`s`): field `sha256` is missing, and needed for what is fetched over http"
    ; "only an md5")]
#[test_case("name: s, version: 1, url: 'file:///x'",
    "/m.yml, entry 1 (`s`): field `format` is missing"; "no format")]
#[test_case("name: s, format: ext4, url: 'file:///x'",
    "/m.yml, entry 1 (`s`): field `version` is missing"; "no version")]
#[test_case("name: s, version: 1.10, format: ext4, url: 'file:///x'",
    "/m.yml, entry 1 (`s`): field `version` is read as the number 1.1: put it in quotes"
    ; "a number that is not what was written")]
#[test_case("version: 1, format: ext4, url: 'file:///x'",
    "/m.yml, entry 1 (``): field `name` is missing"; "no name")]
#[test_case("name: s, version: 1, format: ext4",
    "/m.yml, entry 1 (`s`): field `url` is missing"; "no url")]
#[test_case("name: s, version: 1, format: ext4, url: 'ftp://h/x'",
    "/m.yml, entry 1 (`s`): field `url` must be an `https://`, `http://` or `file:///` URL"
    ; "another scheme")]
#[test_case("name: s, version: 1, format: ext4, url: 'file:///x', sha256: beef",
    "/m.yml, entry 1 (`s`): field `sha256` must be 64 hexadecimal digits"; "a short checksum")]
#[test_case("name: s, version: 1, format: ext4, url: 'file:///x', primary: maybe",
    "/m.yml, entry 1 (`s`): field `primary` must be `true` or `false`"; "neither true nor false")]
#[test_case("name: s, version: 1, format: ext4, url: 'file:///x', size: big",
    "/m.yml, entry 1 (`s`): field `size` must be a whole number"; "no number")]
#[test_case("name: s, version: 1, format: ext4, url: [a]",
    "/m.yml, entry 1 (`s`): field `url` must be text"; "a list")]
fn what_is_wrong_is_named(fields: &str, expected: &str) {
    assert_eq!(error(&second(fields)), expected);
}

#[test]
fn a_name_that_is_a_path_is_refused() {
    let text = error("- {name: ../etc, version: 1, url: 'file:///x'}");
    assert!(text.starts_with(
        "/m.yml, entry 1 (`../etc`): field `name` is wrong: `../etc` is no name of a stack"
    ));
}

#[test]
fn another_list_is_refused() {
    assert!(error("just text").contains("/m.yml is no list of stacks"));
    assert!(error("version: 2").contains("/m.yml is no list of stacks"));
    assert!(error("- text").contains("/m.yml is no list of stacks"));
    assert_eq!(
        error("version: 3\nstacks: []"),
        "/m.yml has version 3; this driver reads version 2, and lists without one"
    );
    assert_eq!(error("a: [b"), "/m.yml is not YAML");
}

#[test_case("https://me:pw@h:1/a/b?sig=1#x", "https://h:1/a/b")]
#[test_case("https://h", "https://h")]
#[test_case("file:///a/b@c", "file:///a/b@c")]
#[test_case("x?y", "x")]
fn what_may_be_secret_is_not_shown(url: &str, expected: &str) {
    assert_eq!(shown(url), expected);
}

#[test]
fn an_entry_is_not_printed_with_its_query() {
    let manifest = parsed("- {name: s, version: 1, url: 'https://h/x?sig=SECRET'}");
    let text = format!("{manifest:?} {:?}", manifest.warnings);
    assert!(!text.contains("SECRET"), "{text}");
}
