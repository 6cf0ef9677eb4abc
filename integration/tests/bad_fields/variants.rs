//! Every field of a message, spoilt in every way that its type allows.

use std::collections::HashMap;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};

/// Bytes of an absurdly long text.
const LONG: usize = 64 << 10;
/// Entries of an absurdly long list.
const MANY: usize = 3000;

/// A request in which one field is spoilt.
pub(crate) struct Variant {
    /// The field, as a path in the request.
    pub(crate) path: String,
    /// What is wrong with it.
    pub(crate) what: &'static str,
    /// The request.
    pub(crate) message: DynamicMessage,
}

/// All variants of a request. Parts for other systems are spoilt as a whole only.
pub(crate) fn of(base: &DynamicMessage) -> Vec<Variant> {
    let fields: Vec<FieldDescriptor> = base.descriptor().fields().collect();
    fields.iter().flat_map(|field| of_field(base, field)).collect()
}

fn of_field(base: &DynamicMessage, field: &FieldDescriptor) -> Vec<Variant> {
    let with = |path: String, what, value: Option<Value>| {
        let mut message = base.clone();
        match value {
            Some(value) => message.set_field(field, value),
            None => message.clear_field(field),
        }
        Variant { path, what, message }
    };
    let name = field.name().to_owned();
    let mut variants = vec![with(name.clone(), "missing", None)];
    if field.is_map() {
        variants.extend(maps(field).into_iter().map(|(what, value)| with(name.clone(), what, Some(value))));
        return variants;
    }
    let inner = inner(base, field);
    if field.is_list() {
        let first = inner.clone().map_or_else(|| element(field), Value::Message);
        variants.push(with(name.clone(), "many", Some(Value::List(vec![first; MANY]))));
        variants.push(with(name.clone(), "one default", Some(Value::List(vec![element(field)]))));
    } else if inner.is_some() {
        variants.push(with(name.clone(), "empty", Some(element(field))));
    }
    let wrap = |value| if field.is_list() { Value::List(vec![value]) } else { value };
    match inner {
        Some(_) if name == "windows" => {}
        Some(inner) => variants.extend(of(&inner).into_iter().map(|deeper| {
            let path = format!("{name}.{}", deeper.path);
            with(path, deeper.what, Some(wrap(Value::Message(deeper.message))))
        })),
        None => variants.extend(
            scalars(&field.kind())
                .into_iter()
                .map(|(what, value)| with(name.clone(), what, Some(wrap(value)))),
        ),
    }
    variants
}

/// The message in a field, or the one a list begins with.
fn inner(base: &DynamicMessage, field: &FieldDescriptor) -> Option<DynamicMessage> {
    let descriptor: MessageDescriptor = field.kind().as_message().cloned()?;
    let first = match base.get_field(field).as_ref() {
        Value::Message(message) => Some(message.clone()),
        Value::List(list) => list.first().and_then(|first| first.as_message().cloned()),
        _ => None,
    };
    Some(first.unwrap_or_else(|| DynamicMessage::new(descriptor)))
}

fn element(field: &FieldDescriptor) -> Value {
    Value::default_value(&field.kind())
}

fn scalars(kind: &Kind) -> Vec<(&'static str, Value)> {
    match kind {
        Kind::String => vec![
            ("empty", Value::String(String::new())),
            ("huge", Value::String("a".repeat(LONG))),
            ("NUL", Value::String("a\0b".into())),
            ("lines", Value::String("a\nb: c\n".into())),
            ("dots", Value::String("../../../etc/passwd".into())),
        ],
        Kind::Bytes => vec![("huge", Value::Bytes(vec![0; LONG].into()))],
        Kind::Bool => vec![("true", Value::Bool(true)), ("false", Value::Bool(false))],
        Kind::Int32 => [0, -1, i32::MIN, i32::MAX].map(|n| ("number", Value::I32(n))).to_vec(),
        Kind::Int64 => [0, -1, i64::MIN, i64::MAX].map(|n| ("number", Value::I64(n))).to_vec(),
        Kind::Uint32 => [0, u32::MAX].map(|n| ("number", Value::U32(n))).to_vec(),
        Kind::Uint64 => [0, u64::MAX].map(|n| ("number", Value::U64(n))).to_vec(),
        Kind::Enum(_) => [-1, 9999].map(|n| ("no value of the enum", Value::EnumNumber(n))).to_vec(),
        other => panic!("no variants of {other:?}"),
    }
}

fn maps(field: &FieldDescriptor) -> Vec<(&'static str, Value)> {
    let kind = field.kind();
    let entry = kind.as_message().expect("an entry");
    let value = entry.map_entry_value_field();
    let default = Value::default_value(&value.kind());
    let text = |text: &str| match value.kind() {
        Kind::String => Value::String(text.into()),
        _ => default.clone(),
    };
    let map = |pairs: Vec<(String, Value)>| {
        Value::Map(
            pairs.into_iter().map(|(key, value)| (MapKey::String(key), value)).collect::<HashMap<_, _>>(),
        )
    };
    vec![
        ("an empty key", map(vec![(String::new(), text("x"))])),
        ("a huge key", map(vec![("a".repeat(LONG), text("x"))])),
        ("a huge value", map(vec![("a.b".into(), text(&"a".repeat(LONG)))])),
        ("NUL", map(vec![("a\0.b".into(), text("x\0y"))])),
        ("dots", map(vec![("../../x".into(), text("../../x"))])),
        ("many", map((0..MANY).map(|n| (format!("key.{n}"), text("x"))).collect())),
    ]
}
