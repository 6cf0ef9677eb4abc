//! Compares our statement of the CRI with the descriptors in the Go module it is pinned to.
//!
//! Covers every service, RPC, message, field, oneof, enum, value, reserved range and option; not
//! comments, source positions, and file options such as `go_package`. Needs Go 1.26 or newer and the
//! module proxy: without them it is skipped, except in CI, where that is a failure.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message;

/// The parts of `google.protobuf.FileDescriptorProto` that the wire and the generated code depend on.
///
/// Declared here and not taken from prost-types, which drops options it does not know
/// (`debug_redact`): options are kept as bytes, so that any difference in them is seen.
mod descriptor {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Set {
        #[prost(message, repeated, tag = "1")]
        pub(crate) file: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct File {
        #[prost(string, tag = "2")]
        pub(crate) package: String,
        #[prost(message, repeated, tag = "4")]
        pub(crate) messages: Vec<Type>,
        #[prost(message, repeated, tag = "5")]
        pub(crate) enums: Vec<Enum>,
        #[prost(message, repeated, tag = "6")]
        pub(crate) services: Vec<Service>,
        #[prost(message, repeated, tag = "7")]
        pub(crate) extensions: Vec<Field>,
        #[prost(string, tag = "12")]
        pub(crate) syntax: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Type {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(crate) fields: Vec<Field>,
        #[prost(message, repeated, tag = "3")]
        pub(crate) nested: Vec<Type>,
        #[prost(message, repeated, tag = "4")]
        pub(crate) enums: Vec<Enum>,
        #[prost(bytes = "vec", tag = "7")]
        pub(crate) options: Vec<u8>,
        #[prost(message, repeated, tag = "8")]
        pub(crate) oneofs: Vec<Oneof>,
        #[prost(message, repeated, tag = "9")]
        pub(crate) reserved: Vec<Range>,
        #[prost(string, repeated, tag = "10")]
        pub(crate) reserved_names: Vec<String>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Field {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(int32, tag = "3")]
        pub(crate) number: i32,
        #[prost(int32, tag = "4")]
        pub(crate) label: i32,
        #[prost(int32, tag = "5")]
        pub(crate) kind: i32,
        #[prost(string, tag = "6")]
        pub(crate) type_name: String,
        #[prost(bytes = "vec", tag = "8")]
        pub(crate) options: Vec<u8>,
        #[prost(int32, optional, tag = "9")]
        pub(crate) oneof: Option<i32>,
        #[prost(bool, tag = "17")]
        pub(crate) optional: bool,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Oneof {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Range {
        #[prost(int32, tag = "1")]
        pub(crate) start: i32,
        #[prost(int32, tag = "2")]
        pub(crate) end: i32,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Enum {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(crate) values: Vec<Value>,
        #[prost(bytes = "vec", tag = "3")]
        pub(crate) options: Vec<u8>,
        #[prost(message, repeated, tag = "4")]
        pub(crate) reserved: Vec<Range>,
        #[prost(string, repeated, tag = "5")]
        pub(crate) reserved_names: Vec<String>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Value {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(int32, tag = "2")]
        pub(crate) number: i32,
        #[prost(bytes = "vec", tag = "3")]
        pub(crate) options: Vec<u8>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Service {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(crate) methods: Vec<Method>,
        #[prost(bytes = "vec", tag = "3")]
        pub(crate) options: Vec<u8>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Method {
        #[prost(string, tag = "1")]
        pub(crate) name: String,
        #[prost(string, tag = "2")]
        pub(crate) input: String,
        #[prost(string, tag = "3")]
        pub(crate) output: String,
        #[prost(bytes = "vec", tag = "4")]
        pub(crate) options: Vec<u8>,
        #[prost(bool, tag = "5")]
        pub(crate) client_streaming: bool,
        #[prost(bool, tag = "6")]
        pub(crate) server_streaming: bool,
    }
}

/// What a file states: each thing by a name that is unique in it, and what is said of the thing.
type Facts = BTreeMap<String, String>;

fn facts(file: &descriptor::File) -> Facts {
    let mut facts = Facts::new();
    facts.insert("file".into(), format!("package {} syntax {}", file.package, file.syntax));
    facts.insert("extensions".into(), format!("{:?}", file.extensions));
    for message in &file.messages {
        add_message(&mut facts, "", message);
    }
    for each in &file.enums {
        add_enum(&mut facts, "", each);
    }
    for service in &file.services {
        facts.insert(format!("service {}", service.name), format!("options {:?}", service.options));
        for m in &service.methods {
            facts.insert(
                format!("rpc {}.{}", service.name, m.name),
                format!(
                    "{} -> {}, client streams {}, server streams {}, options {:?}",
                    m.input, m.output, m.client_streaming, m.server_streaming, m.options
                ),
            );
        }
    }
    facts
}

fn add_message(facts: &mut Facts, parent: &str, message: &descriptor::Type) {
    let name = format!("{parent}{}", message.name);
    let oneofs: Vec<&str> = message.oneofs.iter().map(|o| o.name.as_str()).collect();
    facts.insert(
        format!("message {name}"),
        format!(
            "oneofs {oneofs:?}, reserved {:?} {:?}, options {:?}",
            message.reserved, message.reserved_names, message.options
        ),
    );
    for field in &message.fields {
        facts.insert(
            format!("field {name}.{}", field.name),
            format!(
                "number {}, label {}, type {} {:?}, oneof {:?}, optional {}, options {:?}",
                field.number,
                field.label,
                field.kind,
                field.type_name,
                field.oneof,
                field.optional,
                field.options
            ),
        );
    }
    let inside = format!("{name}.");
    message.nested.iter().for_each(|nested| add_message(facts, &inside, nested));
    message.enums.iter().for_each(|each| add_enum(facts, &inside, each));
}

fn add_enum(facts: &mut Facts, parent: &str, each: &descriptor::Enum) {
    let name = format!("{parent}{}", each.name);
    facts.insert(
        format!("enum {name}"),
        format!("reserved {:?} {:?}, options {:?}", each.reserved, each.reserved_names, each.options),
    );
    for value in &each.values {
        facts.insert(
            format!("value {name}.{}", value.name),
            format!("number {}, options {:?}", value.number, value.options),
        );
    }
}

/// Every fact that only one side states, or that the sides state differently, as lines to read.
fn differences(ours: &Facts, theirs: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, said) in ours {
        match theirs.get(name) {
            None => lines.push(format!("{name}: only ours has it")),
            Some(other) if other != said => lines.push(format!("{name}: ours {said}; theirs {other}")),
            Some(_) => {}
        }
    }
    let missing = theirs.keys().filter(|name| !ours.contains_key(*name));
    lines.extend(missing.map(|name| format!("{name}: only theirs has it")));
    lines
}

fn ours() -> descriptor::File {
    let room = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([room]).unwrap();
    compiler.open_file("cri/v1/api.proto").unwrap();
    let set = descriptor::Set::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap();
    set.file.into_iter().next().expect("one file was compiled")
}

/// The descriptors in the Go module, or why they cannot be had on this machine.
fn theirs() -> Result<descriptor::File, String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cri-api");
    let go = go();
    let run = |args: &[&str]| Command::new(&go).args(args).current_dir(&program).output();
    match run(&["version"]) {
        Err(error) => return Err(format!("{}: {error}", go.display())),
        Ok(output) if !output.status.success() => {
            return Err(format!("{}: {}", go.display(), String::from_utf8_lossy(&output.stderr)));
        }
        Ok(_) => {}
    }
    let output = run(&["run", "-mod=readonly", "."]).expect("go has answered before");
    assert!(output.status.success(), "go run: {}", String::from_utf8_lossy(&output.stderr));
    Ok(descriptor::File::decode(output.stdout.as_slice()).expect("go writes a descriptor"))
}

/// The Go that integration/setup.sh put into the checkout, or else the machine's.
fn go() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/bin/go");
    if own.exists() { own } else { PathBuf::from("go") }
}

#[test]
fn every_name_number_and_type_is_that_of_the_pinned_go_module() {
    let theirs = match theirs() {
        Ok(theirs) => theirs,
        Err(reason) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => {
            panic!("no usable Go, which CI must have: {reason}")
        }
        Err(reason) => {
            println!("SKIPPED: no Go that can compile k8s.io/cri-api: {reason}");
            return;
        }
    };
    let differences = differences(&facts(&ours()), &facts(&theirs));
    assert!(differences.is_empty(), "api.proto differs from k8s.io/cri-api:\n{}", differences.join("\n"));
}

#[test]
fn both_services_have_all_43_rpcs() {
    let file = ours();
    let count = |name: &str| file.services.iter().find(|s| s.name == name).map(|s| s.methods.len());
    assert_eq!((count("RuntimeService"), count("ImageService")), (Some(37), Some(6)));
}

#[test]
fn a_change_of_any_kind_is_noticed() {
    type Change = fn(&mut descriptor::File);
    let changes: [(&str, Change); 9] = [
        ("field number", |f| f.messages[0].fields[0].number += 1),
        ("field type", |f| f.messages[0].fields[0].kind += 1),
        ("field label", |f| f.messages[0].fields[0].label = 3),
        ("field name", |f| f.messages[0].fields[0].name.push('x')),
        ("field option", |f| f.messages[0].fields[0].options = vec![0x18, 1]),
        ("enum value", |f| f.enums[0].values[0].number += 1),
        ("streaming", |f| f.services[0].methods[0].server_streaming = true),
        ("message gone", |f| drop(f.messages.remove(0))),
        ("oneof", |f| f.messages[0].fields[0].oneof = Some(0)),
    ];
    let untouched = facts(&ours());
    for (what, change) in changes {
        let mut file = ours();
        change(&mut file);
        let altered = facts(&file);
        assert!(!differences(&untouched, &altered).is_empty(), "{what}");
        assert!(!differences(&altered, &untouched).is_empty(), "{what}, the other way round");
    }
}
