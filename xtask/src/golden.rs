//! What `hsup.driver.v1` and `hsup.control.v1` have promised, and whether they still keep it.
//!
//! `proto/golden/v1.bin` is the descriptor set of the protocols as they were when last promised.
//! A major never renumbers, removes or changes anything (driver protocol §10, rule 1): whatever
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
        "`{}` {label} {kind}{}{part_of}",
        field.name(),
        field.type_name()
    )
}

fn of_enum(scope: &str, values: &EnumDescriptorProto, promises: &mut BTreeMap<String, String>) {
    let name = format!("{scope}.{}", values.name());
    promises.insert(format!("enum {name}"), "an enum".to_owned());
    for value in &values.value {
        let number = format!("value {} of {name}", value.number());
        promises.insert(number, format!("`{}`", value.name()));
    }
}

fn of_service(
    scope: &str,
    service: &ServiceDescriptorProto,
    promises: &mut BTreeMap<String, String>,
) {
    let name = format!("{scope}.{}", service.name());
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
    use protox::prost_reflect::prost_types::{self, field_descriptor_proto::Type};

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

    #[test]
    fn every_kind_of_change_is_seen() {
        let other_number = broken_by(|file| message(file, "StopRequest").field[1].number = Some(9));
        assert_eq!(
            other_number,
            ["field 2 of hsup.driver.v1.StopRequest (`signal` LABEL_OPTIONAL TYPE_STRING) is gone"]
        );
        let other_name = broken_by(|file| {
            message(file, "StopRequest").field[1].name = Some("name".to_owned());
        });
        assert_eq!(other_name.len(), 1, "{other_name:?}");
        let other_type = broken_by(|file| {
            message(file, "StopRequest").field[2].set_type(Type::Uint64);
        });
        assert_eq!(other_type.len(), 1, "{other_type:?}");
        let no_message = broken_by(|file| {
            file.message_type
                .retain(|message| message.name() != "StopResponse");
        });
        assert_eq!(
            no_message,
            ["message hsup.driver.v1.StopResponse (a message) is gone"]
        );
        let other_value = broken_by(|file| file.enum_type[0].value[1].number = Some(99));
        assert_eq!(other_value.len(), 1, "{other_value:?}");
        let no_call = broken_by(|file| drop(file.service[0].method.remove(0)));
        assert!(no_call[0].starts_with("rpc GetInfo"), "{no_call:?}");
        let streamed = broken_by(|file| file.service[0].method[0].server_streaming = Some(true));
        assert_eq!(streamed.len(), 1, "{streamed:?}");
        let out_of_its_oneof = broken_by(|file| {
            message(file, "RemoveRequest").field[0].oneof_index = None;
        });
        assert_eq!(out_of_its_oneof.len(), 1, "{out_of_its_oneof:?}");
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
