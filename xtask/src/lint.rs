//! Do the protos read as `buf lint` wants them, where nobody has buf?
//!
//! Its STANDARD rules but for those that say how files are grouped, and for `SERVICE_SUFFIX`, which
//! `buf.yaml` leaves out. A rule stands in front of what breaks it, by buf's name for it.

use protox::prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, MessageOptions,
};

use crate::codegen;

#[test]
fn the_protos_are_as_buf_wants_them() {
    let files = codegen::descriptors().unwrap().file;
    let ours = files.iter().filter(|it| it.package().starts_with("hsup."));
    let faults: Vec<_> = ours.flat_map(of_file).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_buf_would_refuse_is_found() {
    let text = "
        syntax = 'proto3'; package hsup.driver;
        enum state { UP = 0; }
        message stop_it { string DynoId = 1; oneof What { bool x = 2; } message in_it {} }
        service Driver { rpc stop(stop_it) returns (stop_it); }
    ";
    let folder = tempfile::tempdir().unwrap();
    #[expect(clippy::disallowed_methods, reason = "nothing reads it meanwhile")]
    std::fs::write(folder.path().join("bad.proto"), text).unwrap();
    let files = protox::compile(["bad.proto"], [folder.path()])
        .unwrap()
        .file;
    let faults = of_file(&files[0]);
    let rules: Vec<_> = faults
        .iter()
        .map(|it| it.split(':').next().unwrap())
        .collect();
    let expected = [
        "PACKAGE_DIRECTORY_MATCH",
        "PACKAGE_VERSION_SUFFIX",
        "MESSAGE_PASCAL_CASE",
        "FIELD_LOWER_SNAKE_CASE",
        "ONEOF_LOWER_SNAKE_CASE",
        "MESSAGE_PASCAL_CASE",
        "ENUM_PASCAL_CASE",
        "ENUM_VALUE_PREFIX",
        "ENUM_ZERO_VALUE_SUFFIX",
        "RPC_PASCAL_CASE",
        "RPC_REQUEST_STANDARD_NAME",
        "RPC_RESPONSE_STANDARD_NAME",
    ];
    assert_eq!(rules, expected, "{faults:?}");
}

fn of_file(file: &FileDescriptorProto) -> Vec<String> {
    let mut faults = Vec::new();
    let mut must = |holds: bool, rule: &str, what: &str| {
        if !holds {
            faults.push(format!("{rule}: {what}"));
        }
    };
    let package = file.package();
    let folder = file
        .name()
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder);
    must(
        folder == package.replace('.', "/"),
        "PACKAGE_DIRECTORY_MATCH",
        file.name(),
    );
    let version = package
        .rsplit('.')
        .next()
        .and_then(|last| last.strip_prefix('v'));
    let is_version = version.is_some_and(|it| it.parse::<u32>().is_ok());
    must(is_version, "PACKAGE_VERSION_SUFFIX", package);
    for message in &file.message_type {
        of_message(message, &mut must);
    }
    for values in &file.enum_type {
        of_enum(values, &mut must);
    }
    for service in &file.service {
        must(
            is_pascal(service.name()),
            "SERVICE_PASCAL_CASE",
            service.name(),
        );
        for method in &service.method {
            let name = method.name();
            must(is_pascal(name), "RPC_PASCAL_CASE", name);
            for (kind, rule, found) in [
                ("Request", "RPC_REQUEST_STANDARD_NAME", method.input_type()),
                (
                    "Response",
                    "RPC_RESPONSE_STANDARD_NAME",
                    method.output_type(),
                ),
            ] {
                let wanted = format!(".{package}.{name}{kind}");
                must(found == wanted, rule, found);
            }
        }
    }
    faults
}

fn of_message(message: &DescriptorProto, must: &mut impl FnMut(bool, &str, &str)) {
    if message
        .options
        .as_ref()
        .is_some_and(MessageOptions::map_entry)
    {
        return;
    }
    must(
        is_pascal(message.name()),
        "MESSAGE_PASCAL_CASE",
        message.name(),
    );
    for field in &message.field {
        must(
            is_snake(field.name()),
            "FIELD_LOWER_SNAKE_CASE",
            field.name(),
        );
    }
    for oneof in &message.oneof_decl {
        // One of an `optional` is named by the compiler.
        let name = oneof.name().trim_start_matches('_');
        must(is_snake(name), "ONEOF_LOWER_SNAKE_CASE", name);
    }
    for nested in &message.nested_type {
        of_message(nested, must);
    }
    for values in &message.enum_type {
        of_enum(values, must);
    }
}

fn of_enum(values: &EnumDescriptorProto, must: &mut impl FnMut(bool, &str, &str)) {
    let name = values.name();
    must(is_pascal(name), "ENUM_PASCAL_CASE", name);
    let prefix = shouted(name);
    for value in &values.value {
        let is_prefixed = value.name().starts_with(&prefix);
        must(is_prefixed, "ENUM_VALUE_PREFIX", value.name());
        if value.number() == 0 {
            let is_none = value.name().ends_with("_UNSPECIFIED");
            must(is_none, "ENUM_ZERO_VALUE_SUFFIX", value.name());
        }
    }
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase()) && !name.contains('_')
}

fn is_snake(name: &str) -> bool {
    let is_part = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || sign == '_';
    name.chars().all(is_part)
}

/// `DynoState` is `DYNO_STATE_`.
fn shouted(name: &str) -> String {
    let mut out = String::new();
    for sign in name.chars() {
        if sign.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(sign.to_ascii_uppercase());
    }
    out + "_"
}
