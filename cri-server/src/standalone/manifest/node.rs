//! A document as a tree whose every value knows where it stands in the file. No I/O.
//!
//! Invariant: the keys of a map differ from each other.

use std::fmt;

/// A place in a file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(in crate::standalone) struct Position {
    pub(in crate::standalone) line: usize,
    pub(in crate::standalone) column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::standalone) struct Node {
    pub(in crate::standalone) at: Position,
    pub(in crate::standalone) value: Value,
}

/// What JSON can say.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::standalone) enum Value {
    Null,
    Bool(bool),
    Whole(i64),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One field of a map.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::standalone) struct Entry {
    pub(in crate::standalone) key: String,
    /// Where the key stands.
    pub(in crate::standalone) at: Position,
    pub(in crate::standalone) node: Node,
}

impl Node {
    /// A field of a map; `None` for anything else.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The text of a field; empty when there is none.
    pub(in crate::standalone) fn word(&self, key: &str) -> &str {
        match self.get(key).map(|node| &node.value) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// Where a path such as `spec.containers[1].name` leads; where it ends early, the last place on the way.
    pub(super) fn locate(&self, path: &str) -> Position {
        let mut node = self;
        let mut rest = path;
        loop {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let next = match &node.value {
                Value::Map(entries) => entries.iter().find_map(|entry| {
                    let step = step(&entry.key);
                    let after = rest.strip_prefix(step.as_str())?;
                    (after.is_empty() || after.starts_with(['.', '['])).then_some((&entry.node, after))
                }),
                Value::List(items) => rest.strip_prefix('[').and_then(|inner| {
                    let (index, after) = inner.split_once(']')?;
                    Some((items.get(index.parse::<usize>().ok()?)?, after))
                }),
                _ => None,
            };
            match next {
                Some((inner, after)) if !rest.is_empty() => (node, rest) = (inner, after),
                _ => return node.at,
            }
        }
    }
}

/// The path of a field below `base`.
pub(in crate::standalone) fn join(base: &str, key: &str) -> String {
    let step = step(key);
    if base.is_empty() || step.starts_with('[') { format!("{base}{step}") } else { format!("{base}.{step}") }
}

/// A key as a part of a path: bare where nobody can misread it.
fn step(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { format!("[{key:?}]") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: usize) -> Node {
        Node { at: Position { line, column: 1 }, value: Value::Text(String::new()) }
    }

    fn map(line: usize, fields: Vec<(&str, Node)>) -> Node {
        let entry = |(key, node): (&str, Node)| Entry { key: key.to_owned(), at: node.at, node };
        Node { at: Position { line, column: 1 }, value: Value::Map(fields.into_iter().map(entry).collect()) }
    }

    #[test]
    fn a_path_leads_as_far_as_there_is_something() {
        let list = Node {
            at: Position { line: 3, column: 1 },
            value: Value::List(vec![map(4, vec![("name", text(5))])]),
        };
        let tree = map(1, vec![("spec", map(2, vec![("a.b/c", text(9)), ("list", list)]))]);
        for (path, line) in [
            ("spec", 2),
            ("spec.list", 3),
            ("spec.list[0].name", 5),
            ("spec.list[0].nothing.more", 4),
            ("spec.list[7]", 3),
            ("spec.lis", 2),
            ("spec[\"a.b/c\"]", 9),
            ("", 1),
        ] {
            assert_eq!(tree.locate(path).line, line, "{path}");
        }
        assert_eq!(join("spec", "a.b/c"), "spec[\"a.b/c\"]");
    }
}
