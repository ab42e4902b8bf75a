//! What `hsup.driver.v1` and `hsup.control.v1` have promised, and whether they still keep it.
//!
//! `proto/golden/v1.bin` is the descriptor set of the protocols as they were when last promised.
//! A major never renumbers, removes or changes anything (docs/driver-rules.md §10): whatever
//! is in the golden set must be in the current one, unchanged. What was added since is free to
//! change until `cargo xtask golden` promises it, too; code generation does not touch the file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use protox::prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

use crate::codegen;

/// Promises what the protocols have now; refuses where that breaks an earlier promise.
pub(crate) fn run() -> Result<()> {
    let current = codegen::descriptors()?;
    if path().exists() {
        let broken = broken(&read()?, &current);
        if !broken.is_empty() {
            bail!("promises are broken:\n{}", broken.join("\n"));
        }
    }
    let mut promised = current;
    for file in &mut promised.file {
        // Comments may get better.
        file.source_code_info = None;
    }
    #[expect(clippy::disallowed_methods, reason = "nothing reads it meanwhile")]
    fs::write(path(), promised.encode_to_vec()).context("failed to write the golden set")
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/golden/v1.bin")
}

fn read() -> Result<FileDescriptorSet> {
    let bytes = fs::read(path()).context("failed to read the golden set")?;
    FileDescriptorSet::decode(bytes.as_slice()).context("the golden set is damaged")
}

/// What of `promised` is not, or not so, in `current`.
fn broken(promised: &FileDescriptorSet, current: &FileDescriptorSet) -> Vec<String> {
    let current = promises(current);
    promises(promised)
        .into_iter()
        .filter_map(|(what, promised)| match current.get(&what) {
            Some(current) if *current == promised => None,
            Some(current) => Some(format!("{what} was {promised} and is {current}")),
            None => Some(format!("{what} ({promised}) is gone")),
        })
        .collect()
}

/// Everything that others build upon: by a name that must stay, what must stay of it.
fn promises(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut promises = BTreeMap::new();
    for file in &set.file {
        let package = file.package();
        // Whoever generates code has the name of the file, too.
        promises.insert(
            format!("file {}", file.name()),
            format!("{} in {package}", file.syntax()),
        );
        for message in &file.message_type {
            of_message(package, message, &mut promises);
        }
        for values in &file.enum_type {
            of_enum(package, values, &mut promises);
        }
        for service in &file.service {
            of_service(package, service, &mut promises);
        }
    }
    promises
}

fn of_message(scope: &str, message: &DescriptorProto, promises: &mut BTreeMap<String, String>) {
    let name = format!("{scope}.{}", message.name());
    promises.insert(format!("message {name}"), "a message".to_owned());
    for field in &message.field {
        let number = format!("field {} of {name}", field.number());
        promises.insert(number, of_field(message, field));
    }
    let ranges = message.reserved_range.iter();
    // The end is not reserved; an enum's is.
    let numbers = ranges.flat_map(|range| range.start()..range.end());
    of_reserved(&name, numbers, &message.reserved_name, promises);
    for nested in &message.nested_type {
        of_message(&name, nested, promises);
    }
    for values in &message.enum_type {
        of_enum(&name, values, promises);
    }
}

fn of_field(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = field.label().as_str_name();
    let kind = field.r#type().as_str_name();
    let oneof = field.oneof_index.and_then(|at| usize::try_from(at).ok());
    let part_of = if field.proto3_optional() {
        " with presence".to_owned()
    } else if let Some(oneof) = oneof.and_then(|at| message.oneof_decl.get(at)) {
        format!(" of the oneof `{}`", oneof.name())
    } else {
        String::new()
    };
    format!(
        "`{}` (`{}` in JSON) {label} {kind}{}{part_of}",
        field.name(),
        field.json_name(),
        field.type_name()
    )
}

/// What is reserved stays so: it is for whatever had that number or name once.
fn of_reserved(
    name: &str,
    numbers: impl Iterator<Item = i32>,
    names: &[String],
    promises: &mut BTreeMap<String, String>,
) {
    // Nobody reserves more, but for all that are left.
    for number in numbers.take(1000) {
        let number = format!("reserved number {number} of {name}");
        promises.insert(number, "reserved".to_owned());
    }
    for reserved in names {
        let reserved = format!("reserved name {reserved} of {name}");
        promises.insert(reserved, "reserved".to_owned());
    }
}

fn of_enum(scope: &str, values: &EnumDescriptorProto, promises: &mut BTreeMap<String, String>) {
    let name = format!("{scope}.{}", values.name());
    promises.insert(format!("enum {name}"), "an enum".to_owned());
    for value in &values.value {
        let number = format!("value {} of {name}", value.number());
        promises.insert(number, format!("`{}`", value.name()));
    }
    let ranges = values.reserved_range.iter();
    let numbers = ranges.flat_map(|range| range.start()..=range.end());
    of_reserved(&name, numbers, &values.reserved_name, promises);
}

fn of_service(
    scope: &str,
    service: &ServiceDescriptorProto,
    promises: &mut BTreeMap<String, String>,
) {
    let name = format!("{scope}.{}", service.name());
    promises.insert(format!("service {name}"), "a service".to_owned());
    for method in &service.method {
        let stream = |streaming| if streaming { "stream of " } else { "" };
        let text = format!(
            "{}{} to {}{}",
            stream(method.client_streaming()),
            method.input_type(),
            stream(method.server_streaming()),
            method.output_type(),
        );
        promises.insert(format!("rpc {} of {name}", method.name()), text);
    }
}

#[cfg(test)]
mod tests {
    use protox::prost_reflect::prost_types::{
        self,
        descriptor_proto::ReservedRange,
        enum_descriptor_proto::EnumReservedRange,
        field_descriptor_proto::{Label, Type},
    };

    use super::*;

    #[test]
    fn promises_are_kept() {
        let broken = broken(&read().unwrap(), &codegen::descriptors().unwrap());
        assert!(broken.is_empty(), "v1 is for ever:\n{}", broken.join("\n"));
    }

    /// What is broken of `v1` when `change` is made to its driver protocol.
    fn broken_by(change: impl FnOnce(&mut prost_types::FileDescriptorProto)) -> Vec<String> {
        let promised = read().unwrap();
        let mut changed = promised.clone();
        let driver = changed
            .file
            .iter_mut()
            .find(|file| file.package() == "hsup.driver.v1")
            .unwrap();
        change(driver);
        broken(&promised, &changed)
    }

    fn message<'a>(
        file: &'a mut prost_types::FileDescriptorProto,
        name: &str,
    ) -> &'a mut DescriptorProto {
        let mut messages = file.message_type.iter_mut();
        messages.find(|message| message.name() == name).unwrap()
    }

    fn field<'a>(
        file: &'a mut prost_types::FileDescriptorProto,
        of: &str,
        name: &str,
    ) -> &'a mut FieldDescriptorProto {
        let mut fields = message(file, of).field.iter_mut();
        fields.find(|field| field.name() == name).unwrap()
    }

    type Change = fn(&mut prost_types::FileDescriptorProto);

    #[test]
    fn every_kind_of_change_is_seen() {
        let changes: [(&str, Change); 20] = [
            ("field 2 of hsup.driver.v1.StopRequest (`signal`", |file| {
                field(file, "StopRequest", "signal").number = Some(9);
            }),
            ("field 2 of hsup.driver.v1.StopRequest was", |file| {
                field(file, "StopRequest", "signal").name = Some("name".to_owned());
            }),
            ("field 2 of hsup.driver.v1.StopRequest was", |file| {
                field(file, "StopRequest", "signal").json_name = Some("name".to_owned());
            }),
            ("field 3 of hsup.driver.v1.StopRequest was", |file| {
                field(file, "StopRequest", "grace_ms").set_type(Type::Uint64);
            }),
            ("field 4 of hsup.driver.v1.StopRequest (`force`", |file| {
                message(file, "StopRequest")
                    .field
                    .retain(|it| it.name() != "force");
            }),
            ("field 2 of hsup.driver.v1.StopRequest was", |file| {
                field(file, "StopRequest", "signal").set_label(Label::Repeated);
            }),
            ("field 8 of hsup.driver.v1.StartRequest was", |file| {
                field(file, "StartRequest", "argv").set_label(Label::Optional);
            }),
            ("field 2 of hsup.driver.v1.StatsResponse was", |file| {
                field(file, "StatsResponse", "cpu_ns").proto3_optional = None;
            }),
            ("field 9 of hsup.driver.v1.Dyno was", |file| {
                let other = ".hsup.driver.v1.Limits".to_owned();
                field(file, "Dyno", "status").type_name = Some(other);
            }),
            ("field 1 of hsup.driver.v1.RemoveRequest was", |file| {
                field(file, "RemoveRequest", "dyno_id").oneof_index = None;
            }),
            ("message hsup.driver.v1.StopResponse", |file| {
                file.message_type.retain(|it| it.name() != "StopResponse");
            }),
            ("value 1 of hsup.driver.v1.Capability", |file| {
                file.enum_type[0].value[1].number = Some(99);
            }),
            ("value 1 of hsup.driver.v1.Capability was", |file| {
                file.enum_type[0].value[1].name = Some("CAPABILITY_FIFO".to_owned());
            }),
            ("value 1 of hsup.driver.v1.Capability", |file| {
                drop(file.enum_type[0].value.remove(1));
            }),
            ("rpc GetInfo of hsup.driver.v1.DynoDriver", |file| {
                drop(file.service[0].method.remove(0));
            }),
            ("rpc GetInfo of hsup.driver.v1.DynoDriver", |file| {
                file.service[0].method[0].name = Some("Info".to_owned());
            }),
            ("rpc GetInfo of hsup.driver.v1.DynoDriver was", |file| {
                file.service[0].method[0].server_streaming = Some(true);
            }),
            ("rpc GetInfo of hsup.driver.v1.DynoDriver was", |file| {
                let other = ".hsup.driver.v1.ListRequest".to_owned();
                file.service[0].method[0].input_type = Some(other);
            }),
            ("service hsup.driver.v1.DynoDriver", |file| {
                file.service[0].name = Some("Driver".to_owned());
            }),
            ("file hsup/driver/v1/driver.proto", |file| {
                file.name = Some("hsup/driver.proto".to_owned());
            }),
        ];
        for (expected, change) in changes {
            let broken = broken_by(change);
            let told = broken.iter().any(|line| line.starts_with(expected));
            assert!(told, "{expected}: {broken:?}");
        }
    }

    #[test]
    fn what_is_reserved_is_not_used_again() {
        let mut promised = read().unwrap();
        let after = promised.clone();
        let mut files = promised.file.iter_mut();
        let driver = files.find(|file| file.package() == "hsup.driver.v1");
        let driver = driver.unwrap();
        let stop = message(driver, "StopRequest");
        stop.reserved_range.push(ReservedRange {
            start: Some(7),
            end: Some(8),
        });
        stop.reserved_name.push("again".to_owned());
        driver.enum_type[0].reserved_range.push(EnumReservedRange {
            start: Some(30),
            end: Some(30),
        });
        let expected = [
            "reserved name again of hsup.driver.v1.StopRequest (reserved) is gone",
            "reserved number 30 of hsup.driver.v1.Capability (reserved) is gone",
            "reserved number 7 of hsup.driver.v1.StopRequest (reserved) is gone",
        ];
        assert_eq!(broken(&promised, &after), expected);
    }

    #[test]
    fn more_is_no_less() {
        let more = broken_by(|file| {
            let stop = message(file, "StopRequest");
            let mut field = stop.field[0].clone();
            field.name = Some("later".to_owned());
            field.number = Some(1000);
            stop.field.push(field);
        });
        assert!(more.is_empty(), "{more:?}");
    }
}
