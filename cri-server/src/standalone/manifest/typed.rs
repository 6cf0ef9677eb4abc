//! A tree as the typed structures of the Kubernetes API. Pure.
//!
//! The structures tell serde the names of their fields: what is not among them is no field at all, and is
//! noted with the nearest one. Nothing here knows what can be run.

use std::{cell::RefCell, fmt};

use serde::{
    Deserialize,
    de::{
        self, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use super::{
    Problem,
    node::{Entry, Node, Position, Value, join},
};

/// Fields that do not exist for which the one that was meant is looked for: more are never shown.
const HINTED: usize = 64;
/// Longer than the name of any field, in bytes.
const LONGEST_NAME: usize = 64;

/// Reads a tree, whose path in the file is `path`; the fields that do not exist come beside it.
pub(super) fn read<T: for<'de> Deserialize<'de>>(
    node: &Node,
    path: &str,
) -> (Result<T, Problem>, Vec<Problem>) {
    let unknown = RefCell::new(Vec::new());
    let path = Path { above: None, step: Step::Root(path) };
    let reader = Reader { node, path: &path, unknown: &unknown };
    let value = T::deserialize(reader).map_err(|wrong| wrong.at(node.at, &path).into_problem());
    (value, unknown.into_inner())
}

/// A value that is not what its field takes.
#[derive(Debug)]
struct Wrong {
    place: Option<(Position, String)>,
    reason: String,
}

impl Wrong {
    /// Adds the place, unless one further in is known already.
    fn at(mut self, at: Position, path: &Path<'_>) -> Self {
        self.place.get_or_insert_with(|| (at, path.text()));
        self
    }

    fn into_problem(self) -> Problem {
        let (at, field) = self.place.unwrap_or_default();
        Problem { at: Some(at), field, reason: self.reason, file: None }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Wrong {}

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self { place: None, reason: reason.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        let wanted = word(&wanted.to_string());
        let quotes = matches!(found, Unexpected::Signed(_) | Unexpected::Float(_) | Unexpected::Bool(_));
        let mend = if quotes && wanted == "a text" { "; put it in quotes" } else { "" };
        Self::custom(format!("is {}, and must be {wanted}{mend}", shown(found)))
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::custom(format!("is {}, and must be {}", shown(found), word(&wanted.to_string())))
    }
}

/// What serde and the structures call a type, in the words of a manifest.
fn word(wanted: &str) -> String {
    match wanted {
        "a string" | "string" => "a text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "i64" | "u64" => "a whole number".to_owned(),
        "i32" | "u32" => "a whole number that fits into 32 bits".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a map of names and values".to_owned(),
        "Quantity" => "a quantity such as 500m or 64Mi".to_owned(),
        "IntOrString" => "a number or a text".to_owned(),
        kind if kind.chars().all(|c| c.is_ascii_alphanumeric()) && kind.starts_with(char::is_uppercase) => {
            format!("a map with the fields of a {kind}")
        }
        other => other.to_owned(),
    }
}

fn shown(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("the truth value {value}"),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(text) => {
            let short: String = text.chars().take(60).collect();
            format!("the text {short:?}{}", if short.len() < text.len() { "…" } else { "" })
        }
        Unexpected::Unit | Unexpected::Option => "empty".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

/// Where a value is: its last step, and where that leads from. It becomes a text only when there is something to
/// say, since a file can have many values below one long key.
struct Path<'p> {
    above: Option<&'p Path<'p>>,
    step: Step<'p>,
}

enum Step<'p> {
    Root(&'p str),
    Key(&'p str),
    Index(usize),
}

impl Path<'_> {
    fn text(&self) -> String {
        let above = self.above.map(Path::text).unwrap_or_default();
        match self.step {
            Step::Root(path) => path.to_owned(),
            Step::Key(key) => join(&above, key),
            Step::Index(index) => format!("{above}[{index}]"),
        }
    }
}

/// Reads one value. `'a` is how long the tree lives, `'r` the path to the value.
struct Reader<'r, 'a> {
    node: &'a Node,
    path: &'r Path<'r>,
    unknown: &'r RefCell<Vec<Problem>>,
}

impl Reader<'_, '_> {
    fn note_unknown(&self, kind: &str, fields: &[&'static str], entries: &[Entry]) {
        for entry in entries.iter().filter(|entry| !fields.contains(&entry.key.as_str())) {
            let mut unknown = self.unknown.borrow_mut();
            let near = (unknown.len() < HINTED).then(|| nearest(&entry.key, fields)).flatten();
            let reason = match near {
                Some(near) => format!("no such field; did you mean {near}?"),
                None => format!("no such field of a {kind}"),
            };
            let field = Path { above: Some(self.path), step: Step::Key(&entry.key) }.text();
            unknown.push(Problem { at: Some(entry.at), field, reason, file: None });
        }
    }
}

/// The field that was probably meant.
fn nearest<'f>(key: &str, fields: &[&'f str]) -> Option<&'f str> {
    if key.len() > LONGEST_NAME {
        return None;
    }
    let lower = key.to_lowercase();
    let far = |field: &&&str| strsim::damerau_levenshtein(&lower, &field.to_lowercase());
    let near = fields.iter().min_by_key(far)?;
    let bound = (key.chars().count() / 3).max(1);
    (far(&near) <= bound).then_some(*near)
}

impl<'de, 'a: 'de> Deserializer<'de> for Reader<'_, 'a> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        let value = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Whole(value) => visitor.visit_i64(*value),
            Value::Number(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items { of: &self, items: items.iter().enumerate() }),
            Value::Map(entries) => {
                visitor.visit_map(Fields { of: &self, entries: entries.iter(), value: None })
            }
        };
        value.map_err(|wrong| wrong.at(self.node.at, self.path))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        if let Value::Map(entries) = &self.node.value {
            self.note_unknown(name, fields, entries);
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map enum identifier
    }
}

struct Items<'r, 'a> {
    of: &'r Reader<'r, 'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de, 'a: 'de> SeqAccess<'de> for Items<'_, 'a> {
    type Error = Wrong;

    fn next_element_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Wrong> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = Path { above: Some(self.of.path), step: Step::Index(index) };
        seed.deserialize(Reader { node, path: &path, unknown: self.of.unknown }).map(Some)
    }
}

struct Fields<'r, 'a> {
    of: &'r Reader<'r, 'a>,
    entries: std::slice::Iter<'a, Entry>,
    value: Option<&'a Entry>,
}

impl<'de, 'a: 'de> MapAccess<'de> for Fields<'_, 'a> {
    type Error = Wrong;

    fn next_key_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Wrong> {
        self.value = self.entries.next();
        let Some(entry) = self.value else { return Ok(None) };
        let key: StrDeserializer<'_, Wrong> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Wrong> {
        let entry = self.value.take().expect("serde asks for a value after its key");
        let path = Path { above: Some(self.of.path), step: Step::Key(&entry.key) };
        let reader = Reader { node: &entry.node, path: &path, unknown: self.of.unknown };
        seed.deserialize(reader).map_err(|wrong| wrong.at(entry.node.at, &path))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, Secret};

    use super::{super::read::documents, *};

    fn pod(text: &str) -> (Result<Pod, String>, Vec<String>) {
        let node = documents(text).unwrap().remove(0);
        let (pod, unknown) = read(&node, "");
        (pod.map_err(|problem| problem.to_string()), unknown.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_field_that_does_not_exist_is_named_with_its_place_and_the_nearest() {
        let (read, unknown) = pod(
            "spec:\n  containers:\n  - imag: x\n    Command: [a]\n    zzz: 1\n    ports: [{containerport: 1}]\n\
             \x20 restartpolicy: Never\nstatus: {}\n",
        );
        assert!(read.is_ok(), "{read:?}");
        assert_eq!(
            unknown,
            [
                "7:3: spec.restartpolicy: no such field; did you mean restartPolicy?",
                "3:5: spec.containers[0].imag: no such field; did you mean image?",
                "4:5: spec.containers[0].Command: no such field; did you mean command?",
                "5:5: spec.containers[0].zzz: no such field of a Container",
                "6:14: spec.containers[0].ports[0].containerport: no such field; did you mean containerPort?",
            ]
        );
    }

    #[test]
    fn a_value_of_another_type_is_told_with_its_place() {
        for (spec, want) in [
            (
                "containers: [{image: 7}]",
                "2:24: spec.containers[0].image: is the number 7, and must be a text; put it in quotes",
            ),
            ("containers: {image: x}", "2:15: spec.containers: is a map, and must be a list"),
            (
                "containers: [x]",
                "2:16: spec.containers[0]: is the text \"x\", and must be a map with the fields of a Container",
            ),
            (
                "containers: [{env: [{name: A, value: yes}]}]",
                "2:40: spec.containers[0].env[0].value: is the truth value true, and must be a text; put it in quotes",
            ),
            (
                "hostNetwork: 'true'",
                "2:16: spec.hostNetwork: is the text \"true\", and must be true or false",
            ),
            (
                "priority: 1.5",
                "2:13: spec.priority: is the number 1.5, and must be a whole number that fits into 32 bits",
            ),
            (
                "priority: 99999999999",
                "2:13: spec.priority: is the number 99999999999, and must be a whole number that fits into 32 bits",
            ),
            (
                "nodeSelector: {a.b/c: 1}",
                "2:25: spec.nodeSelector[\"a.b/c\"]: is the number 1, and must be a text; put it in quotes",
            ),
            (
                "overhead: {cpu: [1]}",
                "2:19: spec.overhead.cpu: is a list, and must be a quantity such as 500m or 64Mi",
            ),
        ] {
            let (read, _) = pod(&format!("spec:\n  {spec}\n"));
            assert_eq!(read.unwrap_err(), want);
        }
    }

    #[test]
    fn numbers_are_quantities_and_null_is_nothing() {
        let (read, unknown) =
            pod("metadata: ~\nspec:\n  overhead: {cpu: 0.5, memory: 1024}\n  hostname:\n  containers: ~\n");
        let spec = read.unwrap().spec.unwrap();
        let overhead = spec.overhead.unwrap();
        assert_eq!((overhead["cpu"].0.as_str(), overhead["memory"].0.as_str()), ("0.5", "1024"));
        assert!(spec.hostname.is_none() && unknown.is_empty());
    }

    #[test]
    fn what_is_not_base64_is_told_by_its_key() {
        let node = documents("data:\n  key: '%%'\n").unwrap().remove(0);
        let (secret, _) = read::<Secret>(&node, "");
        let message = secret.unwrap_err().to_string();
        assert!(message.starts_with("2:8: data.key: "), "{message}");
    }
}
