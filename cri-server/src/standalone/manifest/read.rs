//! YAML (and with it JSON) as trees of nodes. No I/O.
//!
//! Invariant: what a text can make of itself by aliases, depth and repetition is bounded.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::{
    node::{Entry, Node, Position, Value},
    scalar,
};

/// Deepest nesting: no kind of Kubernetes comes near it.
const DEEPEST: usize = 100;
/// Most that aliases may add, in values and in bytes of text together.
const LARGEST_COPIES: usize = 4 << 20;

/// What is wrong with a text, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: Position,
    pub(super) reason: String,
}

/// The documents of a text; empty ones are left out.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, Fault> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Fault {
            at: position(error.marker()),
            reason: format!("is not YAML: {}", error.info()),
        })?;
        builder.take(event, position(&span.start))?;
    }
    Ok(builder.documents)
}

fn position(marker: &Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}

/// A list or map whose end has not come yet.
struct Open {
    at: Position,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashSet<String>, key: Option<(String, Position)>, merged: Vec<Node> },
}

/// A whole value under an anchor, and what a copy of it costs.
struct Anchored {
    node: Node,
    cost: usize,
    /// How many levels of lists and maps it is.
    depth: usize,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    copied: usize,
    documents: Vec<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), Fault> {
        let fault = |reason: &str| Err(Fault { at, reason: reason.to_owned() });
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = match tag.as_deref() {
                    None if style == ScalarStyle::Plain => scalar::plain(&text),
                    None => Value::Text(text.into_owned()),
                    Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => {
                        Value::Text(text.into_owned())
                    }
                    Some(tag) => {
                        return fault(&format!("tag {tag} means nothing in a manifest; leave it out"));
                    }
                };
                self.put(Node { at, value }, anchor, style == ScalarStyle::Plain)
            }
            Event::SequenceStart(_, Some(tag)) | Event::MappingStart(_, Some(tag)) => {
                fault(&format!("tag {tag} means nothing in a manifest; leave it out"))
            }
            Event::SequenceStart(anchor, None) => {
                self.begin(Open { at, anchor, kind: Kind::List(Vec::new()) })
            }
            Event::MappingStart(anchor, None) => {
                let kind =
                    Kind::Map { entries: Vec::new(), seen: HashSet::new(), key: None, merged: Vec::new() };
                self.begin(Open { at, anchor, kind })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(anchored) = self.anchors.get(&anchor) else {
                    return fault("an alias within the value it stands for never ends; write it out");
                };
                self.copied = self.copied.saturating_add(anchored.cost);
                if self.copied > LARGEST_COPIES {
                    return fault(
                        "its aliases repeat more than a manifest can hold; write out what is meant",
                    );
                }
                if self.open.len() + anchored.depth > DEEPEST {
                    return fault(&format!("is nested deeper than {DEEPEST} levels with what it stands for"));
                }
                let node = anchored.node.clone();
                self.put(node, 0, false)
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), Fault> {
        let at = open.at;
        self.open.push(open);
        if self.open.len() > DEEPEST {
            return Err(Fault { at, reason: format!("is nested deeper than {DEEPEST} levels") });
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        let Some(Open { at, anchor, kind }) = self.open.pop() else { return Ok(()) };
        let value = match kind {
            Kind::List(items) => Value::List(items),
            Kind::Map { entries, merged, .. } => Value::Map(merge(entries, merged)?),
        };
        self.put(Node { at, value }, anchor, false)
    }

    /// Puts a whole value where it belongs.
    fn put(&mut self, node: Node, anchor: usize, plain: bool) -> Result<(), Fault> {
        if anchor != 0 {
            let cost = cost(&node);
            let depth = depth(&node);
            self.anchors.insert(anchor, Anchored { node: node.clone(), cost, depth });
            // The copy that is kept counts as well: an anchor on every level would square the text.
            self.copied = self.copied.saturating_add(cost);
            if self.copied > LARGEST_COPIES {
                let reason = "its anchors hold more than a manifest can; write out what is meant".to_owned();
                return Err(Fault { at: node.at, reason });
            }
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => {
                if node.value != Value::Null {
                    self.documents.push(node);
                }
            }
            Some(Kind::List(items)) => items.push(node),
            Some(Kind::Map { entries, seen, key, merged }) => match key.take() {
                None => {
                    let at = node.at;
                    let name = key_text(node)?;
                    let merges = plain && name == "<<";
                    if !merges && !seen.insert(name.clone()) {
                        return Err(Fault {
                            at,
                            reason: format!("key {name:?} is there twice; leave one out"),
                        });
                    }
                    *key = Some((name, at));
                }
                Some((name, _)) if name == "<<" && !seen.contains("<<") => merged.push(node),
                Some((name, at)) => entries.push(Entry { key: name, at, node }),
            },
        }
        Ok(())
    }
}

fn key_text(node: Node) -> Result<String, Fault> {
    match node.value {
        Value::Text(text) => Ok(text),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Whole(value) => Ok(value.to_string()),
        Value::Number(value) => Ok(value.to_string()),
        Value::Null => Err(Fault { at: node.at, reason: "a key is empty; name the field".to_owned() }),
        Value::List(_) | Value::Map(_) => {
            let reason = "a key is a list or a map; keys are words (a {{ }} of a template, not filled in?)";
            Err(Fault { at: node.at, reason: reason.to_owned() })
        }
    }
}

/// Adds what `<<` brings: what is written out wins, then the first that brings it.
fn merge(mut entries: Vec<Entry>, merged: Vec<Node>) -> Result<Vec<Entry>, Fault> {
    let mut sources = Vec::new();
    for node in merged {
        match node.value {
            Value::List(items) => sources.extend(items),
            _ => sources.push(node),
        }
    }
    let mut seen: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    for source in sources {
        let Value::Map(fields) = source.value else {
            let reason = "<< takes a map, or a list of maps".to_owned();
            return Err(Fault { at: source.at, reason });
        };
        entries.extend(fields.into_iter().filter(|field| seen.insert(field.key.clone())));
    }
    Ok(entries)
}

/// Values and bytes of text in a tree.
fn cost(node: &Node) -> usize {
    1 + match &node.value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.iter().map(cost).sum(),
        Value::Map(entries) => entries.iter().map(|entry| entry.key.len() + cost(&entry.node)).sum(),
        _ => 0,
    }
}

/// Levels of lists and maps in a tree; bounded by [`DEEPEST`].
fn depth(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|entry| depth(&entry.node)).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn one(text: &str) -> Node {
        documents(text).unwrap().remove(0)
    }

    #[test]
    fn every_value_knows_its_place() {
        let tree = one("a: 1\nb:\n  - c: x\n    d: [1, true]\n");
        for (path, line, column) in
            [("a", 1, 4), ("b", 3, 3), ("b[0].c", 3, 8), ("b[0].d", 4, 8), ("b[0].d[1]", 4, 12)]
        {
            assert_eq!(tree.locate(path), Position { line, column }, "{path}");
        }
    }

    #[test]
    fn json_is_read_with_its_tabs_and_escapes() {
        let tree = one("{\n\t\"a\": \"x\\ny\\u0041\\/\",\n\t\"b\": [1, null, \"on\"]\n}\n");
        assert_eq!(tree.word("a"), "x\nyA/");
        let Value::List(items) = &tree.get("b").unwrap().value else { panic!("{tree:?}") };
        let values: Vec<&Value> = items.iter().map(|item| &item.value).collect();
        assert_eq!(values, [&Value::Whole(1), &Value::Null, &Value::Text("on".into())]);
    }

    #[test]
    fn aliases_and_merge_keys_are_followed() {
        let tree = one("base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  y: 3\nsame: *b\n");
        let more = tree.get("more").unwrap();
        assert_eq!(more.get("x").unwrap().value, Value::Whole(1));
        assert_eq!(more.get("y").unwrap().value, Value::Whole(3));
        assert_eq!(tree.get("same").unwrap().get("y").unwrap().value, Value::Whole(2));
    }

    #[test]
    fn documents_that_hold_nothing_are_left_out() {
        assert_eq!(documents("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n").unwrap().len(), 2);
        assert_eq!(documents("").unwrap().len(), 0);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_place() {
        let mut laughs = String::from("a0: &a0 lol\n");
        for level in 1..30 {
            let inner = vec![format!("*a{}", level - 1); 10].join(", ");
            writeln!(laughs, "a{level}: &a{level} [{inner}]").unwrap();
        }
        let (open, close) = ("[".repeat(95), "]".repeat(95));
        let tower = (1..80).fold("x0: &a0 [1]\n".to_owned(), |text, level| {
            text + &format!("x{level}: &a{level} {open}*a{}{close}\n", level - 1)
        });
        let deep = format!("{}x{}", "[".repeat(DEEPEST + 1), "]".repeat(DEEPEST + 1));
        let hostile = "[".repeat(100_000);
        let braces = "{a: ".repeat(50_000);
        let dashes = "- ".repeat(100_000);
        let colons = "a:\n".to_owned() + &(1..2000).map(|n| " ".repeat(n) + "a:\n").collect::<String>();
        let mut wrong = Vec::new();
        for (text, line, word) in [
            ("a: 1\na: 2\n", 2, "\"a\" is there twice"),
            ("a: 1\n\"a\": 2\n", 2, "\"a\" is there twice"),
            ("a: {x: 1, x: 2}\n", 1, "\"x\" is there twice"),
            ("a: [\n", 2, "is not YAML"),
            ("a: 1\n\tb: 2\n", 1, "is not YAML"),
            ("a: &a [*a]\n", 1, "never ends"),
            ("a: *b\n", 1, "is not YAML"),
            ("? [a]\n: 1\n", 1, "keys are words"),
            ("image: {{ .Values.image }}\n", 1, "template"),
            ("a: !!binary aGk=\n", 1, "means nothing"),
            ("a: {<<: 7}\n", 1, "takes a map"),
            (&laughs, 0, "more than a manifest can"),
            (&deep, 1, "nested deeper"),
            (&tower, 3, "nested deeper"),
            (&hostile, 0, ""),
            (&braces, 0, ""),
            (&dashes, 0, ""),
            (&colons, 0, ""),
        ] {
            let short: String = text.chars().take(60).collect();
            match documents(text) {
                Err(fault) if fault.reason.contains(word) && (line == 0 || fault.at.line == line) => {}
                other => wrong.push(format!("{short:?}: {:?}", other.map(|read| read.len()))),
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
