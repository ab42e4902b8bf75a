//! Writes `docs/protocol.md`, the reference of both protocols, from the protos and their comments.
//!
//! What a comment says of a call or a field stands beside the call or the field; the test below
//! fails when the page is not what the protos say.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use protox::prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    MessageOptions, ServiceDescriptorProto, field_descriptor_proto::Type,
};

use crate::codegen;

const BEGIN: &str = "\
# The protocols

What `.proto` files say of each call, message and field; `cargo xtask reference` writes this page.
[drivers.md](drivers.md) has the rules of the driver protocol, [control-api.md](control-api.md) how the control
API is reached, [versioning.md](versioning.md) what may change.
";

/// The numbers of fields of descriptors, of which the paths to comments are made.
mod at {
    pub(super) const MESSAGE: i32 = 4;
    pub(super) const ENUM: i32 = 5;
    pub(super) const SERVICE: i32 = 6;
    pub(super) const SYNTAX: i32 = 12;
    /// Of a message, a service, an enum: its fields, calls, values.
    pub(super) const MEMBER: i32 = 2;
    /// Of a message.
    pub(super) const NESTED: i32 = 3;
    pub(super) const NESTED_ENUM: i32 = 4;
}

pub(crate) fn run() -> Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "nothing reads it while it is written"
    )]
    fs::write(path(), page()?).context("failed to write the reference of the protocols")
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md")
}

fn page() -> Result<String> {
    let mut files = codegen::descriptors()?.file;
    // hsup.driver.v1 first: it is what others implement.
    files.sort_by(|a, b| b.package().cmp(a.package()));
    let mut page = BEGIN.to_owned();
    for file in &files {
        Writer::new(file, &mut page).file(file);
    }
    Ok(page)
}

struct Writer<'a> {
    package: &'a str,
    comments: HashMap<&'a [i32], Comment>,
    page: &'a mut String,
}

#[derive(Default)]
struct Comment {
    before: String,
    after: String,
}

impl Comment {
    /// As one paragraph, or a cell of a table.
    fn line(&self) -> String {
        let both = format!("{} {}", self.before, self.after);
        let words: Vec<_> = both.split_whitespace().collect();
        words.join(" ").replace('<', "&lt;").replace('|', "\\|")
    }
}

impl<'a> Writer<'a> {
    fn new(file: &'a FileDescriptorProto, page: &'a mut String) -> Self {
        let info = file.source_code_info.as_ref();
        let locations = info.map(|info| info.location.as_slice());
        let comments = locations.unwrap_or_default().iter().map(|location| {
            let comment = Comment {
                before: location.leading_comments().to_owned(),
                after: location.trailing_comments().to_owned(),
            };
            (location.path.as_slice(), comment)
        });
        Self {
            package: file.package(),
            comments: comments.collect(),
            page,
        }
    }

    fn file(&mut self, file: &FileDescriptorProto) {
        self.say(&format!("\n## {}", file.package()));
        let path = format!("proto/proto/{}", file.name());
        self.say(&format!("\n`{path}`. {}", self.comment(&[at::SYNTAX])));
        for (index, service) in (0..).zip(&file.service) {
            self.service(service, &[at::SERVICE, index]);
        }
        for (index, message) in (0..).zip(&file.message_type) {
            self.message("", message, &[at::MESSAGE, index]);
        }
        for (index, values) in (0..).zip(&file.enum_type) {
            self.values("", values, &[at::ENUM, index]);
        }
    }

    /// The calls, as they stand in the proto: a comment may be about several.
    fn service(&mut self, service: &ServiceDescriptorProto, path: &[i32]) {
        self.heading(service.name(), path);
        self.say("\n```proto");
        for (index, method) in (0..).zip(&service.method) {
            let comment = self
                .comments
                .get(&[path, &[at::MEMBER, index]].concat()[..]);
            let lines = comment.map(|comment| comment.before.clone());
            for line in lines.iter().flat_map(|lines| lines.lines()) {
                self.say(&format!("//{line}"));
            }
            let stream = |is_stream| if is_stream { "stream " } else { "" };
            self.say(&format!(
                "rpc {}({}{}) returns ({}{});",
                method.name(),
                stream(method.client_streaming()),
                self.short(method.input_type()),
                stream(method.server_streaming()),
                self.short(method.output_type()),
            ));
        }
        self.say("```");
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto, path: &[i32]) {
        let name = format!("{scope}{}", message.name());
        self.heading(&name, path);
        if message.field.is_empty() {
            self.say("\nIt has no fields.");
        } else {
            self.say("\n| | field | type | |\n|---|---|---|---|");
        }
        for (index, field) in (0..).zip(&message.field) {
            let comment = self.comment(&[path, &[at::MEMBER, index]].concat());
            let kind = self.kind(message, field);
            let row = format!("| {} | `{}` | {kind} |", field.number(), field.name());
            self.say(&cell(row, &comment));
        }
        let scope = format!("{name}.");
        for (index, nested) in (0..).zip(&message.nested_type) {
            if !is_map(nested) {
                self.message(&scope, nested, &[path, &[at::NESTED, index]].concat());
            }
        }
        for (index, values) in (0..).zip(&message.enum_type) {
            self.values(&scope, values, &[path, &[at::NESTED_ENUM, index]].concat());
        }
    }

    fn values(&mut self, scope: &str, values: &EnumDescriptorProto, path: &[i32]) {
        self.heading(&format!("{scope}{}", values.name()), path);
        self.say("\n| | value | |\n|---|---|---|");
        for (index, value) in (0..).zip(&values.value) {
            let comment = self.comment(&[path, &[at::MEMBER, index]].concat());
            let row = format!("| {} | `{}` |", value.number(), value.name());
            self.say(&cell(row, &comment));
        }
    }

    fn heading(&mut self, name: &str, path: &[i32]) {
        self.say(&format!("\n### {}.{name}", self.package));
        let comment = self.comment(path);
        if !comment.is_empty() {
            self.say(&format!("\n{comment}"));
        }
    }

    /// The type of a field, as the proto has it, with a link where it leads to one of this page.
    fn kind(&self, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
        let mut nested = message.nested_type.iter();
        let entry = nested.find(|it| is_map(it) && field.type_name().ends_with(it.name()));
        if let Some([key, value]) = entry.map(|entry| &entry.field[..]) {
            return format!("map of {} to {}", self.plain(key), self.plain(value));
        }
        let oneof = field.oneof_index.and_then(|at| usize::try_from(at).ok());
        let oneof = oneof.and_then(|at| message.oneof_decl.get(at));
        let kind = self.plain(field);
        match oneof {
            _ if field.proto3_optional() => format!("optional {kind}"),
            Some(oneof) => format!("{kind}, one of `{}`", oneof.name()),
            None if field.label().as_str_name() == "LABEL_REPEATED" => format!("repeated {kind}"),
            None => kind,
        }
    }

    fn plain(&self, field: &FieldDescriptorProto) -> String {
        match field.r#type() {
            Type::Message | Type::Enum => {
                let anchor = field.type_name().replace('.', "").to_lowercase();
                format!("[{}](#{anchor})", self.short(field.type_name()))
            }
            kind => kind
                .as_str_name()
                .trim_start_matches("TYPE_")
                .to_lowercase(),
        }
    }

    /// A name without its package, which is the same for all of a file.
    fn short<'b>(&self, name: &'b str) -> &'b str {
        let name = name.trim_start_matches('.');
        let short = name.strip_prefix(self.package);
        short.map_or(name, |short| short.trim_start_matches('.'))
    }

    fn comment(&self, path: &[i32]) -> String {
        self.comments
            .get(path)
            .map(Comment::line)
            .unwrap_or_default()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.page, "{}", line.trim_end()).expect("a string takes whatever is written");
    }
}

fn cell(row: String, comment: &str) -> String {
    if comment.is_empty() {
        row + " |"
    } else {
        format!("{row} {comment} |")
    }
}

fn is_map(message: &DescriptorProto) -> bool {
    let options = message.options.as_ref();
    options.is_some_and(MessageOptions::map_entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_current() {
        let written = fs::read_to_string(path()).unwrap();
        let is_current = written == page().unwrap();
        assert!(
            is_current,
            "docs/protocol.md is stale: run `cargo xtask reference`"
        );
    }

    #[test]
    fn the_reference_has_every_call_field_and_value() {
        let page = page().unwrap();
        let has = |what: String| assert!(page.contains(&what), "{what}");
        for file in codegen::descriptors().unwrap().file {
            for method in file.service.iter().flat_map(|service| &service.method) {
                has(format!("rpc {}(", method.name()));
            }
            for message in &file.message_type {
                has(format!("### {}.{}\n", file.package(), message.name()));
                for field in &message.field {
                    has(format!("| {} | `{}` |", field.number(), field.name()));
                }
            }
            for value in file.enum_type.iter().flat_map(|values| &values.value) {
                has(format!("| {} | `{}` |", value.number(), value.name()));
            }
        }
    }
}
