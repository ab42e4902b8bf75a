//! Slugs and stacks over https: from whom `SSL_CERT_FILE` trusts, and from nobody else.

use std::fs;

use hsup_proto::driver::Release;
use hsup_tests::fake::storage::{Authority, FakeStorage, Flaw};
use tonic::Code;

use crate::{
    caller::{Caller, release, says},
    host::Host,
    machine::{said, tool},
};

/// A packed folder, and its checksum.
fn packed(host: &Host, folder: &str, what: &str) -> (Vec<u8>, String) {
    let path = host.path("packed.tgz");
    let path = path.to_str().unwrap();
    let folder = host.path(folder);
    tool(
        "tar",
        &format!("-czf {path} -C {} {what}", folder.display()),
    )
    .unwrap();
    let sum = said("sha256sum", &[path]);
    (
        fs::read(path).unwrap(),
        sum.split(' ').next().unwrap().to_owned(),
    )
}

/// Puts a stack `far` and a slug into a storage; a release of both, and the list of stacks.
fn publish(host: &Host, storage: &FakeStorage) -> (Release, String) {
    host.write("work/stacks/test-1/etc/kind", "from afar\n");
    host.write("one/app/hello", "well\n");
    let (stack, sum) = packed(host, "work/stacks/test-1", ".");
    let url = storage.put("stack.tgz", stack);
    let list = format!(
        "version: 2\nstacks:\n- {{name: far, version: 1, format: rootfs-tar, url: '{url}', \
         sha256: {sum}}}\n"
    );
    let list = storage.put("stacks.yml", list.into_bytes());
    let (slug, sum) = packed(host, "one", "./app");
    let slug_url = storage.put("slug.tgz", slug) + "?token=s3cret";
    let release = Release {
        slug_url,
        slug_checksum: format!("SHA256:{sum}"),
        ..release("far")
    };
    (release, list)
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_slug_and_a_stack_come_from_a_server_that_is_trusted() {
    let host = Host::new();
    let certificate = host.path("ca.pem");
    let authority = Authority::new(&certificate).unwrap();
    let storage = FakeStorage::start(&authority, Flaw::None).unwrap();
    let (release, list) = publish(&host, &storage);
    let driver = host.driver_with(|command| {
        command.env("SSL_CERT_FILE", &certificate);
        command.args(["--stacks-manifest", &list]);
    });
    let caller = Caller::new(&host.socket());
    let artifact = caller.build(release).unwrap();
    let run = |request: &mut hsup_proto::driver::StartRequest| request.artifact = artifact;
    let (printed, _) = caller.output("a", "cat hello /etc/kind", run);
    assert_eq!(printed, "well\nfrom afar\n");
    assert!(!driver.log().contains("s3cret"), "{}", driver.log());
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_server_that_is_not_trusted_is_named_with_what_is_wrong() {
    let host = Host::new();
    let [trusted, other] = ["ca.pem", "other.pem"].map(|name| host.path(name));
    let authority = Authority::new(&trusted).unwrap();
    let stranger = Authority::new(&other).unwrap();
    for (by, flaw, word) in [
        (&stranger, Flaw::None, "UnknownIssuer"),
        (&authority, Flaw::Name, "not valid for name"),
        (&authority, Flaw::Age, "expired"),
    ] {
        let storage = FakeStorage::start(by, flaw).unwrap();
        let (slug_and_stack, list) = publish(&host, &storage);
        let driver = host.driver_with(|command| {
            command.env("SSL_CERT_FILE", &trusted);
            command.args(["--stacks-manifest", &list]);
        });
        let caller = Caller::new(&host.socket());
        let slug = Release {
            stack: "test".to_owned(),
            ..slug_and_stack.clone()
        };
        for release in [slug, slug_and_stack] {
            let refused = caller.build(release).unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused}");
            says(&refused, &[&storage.host(), "certificate", word]);
            assert!(!refused.message().contains("s3cret"), "{refused}");
        }
        driver.end();
    }
    host.is_clean();
}
