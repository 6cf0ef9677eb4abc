//! A document as a tree whose every value knows where it stands in the file. No I/O.
//!
//! Invariant: the keys of a map differ from each other.

use std::fmt;

/// A place in a file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
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
        self.follow(path).0.at
    }

    /// The part of a path with the first step that leads nowhere; `None` when there is something at its end.
    pub(super) fn first_missing<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (_, rest) = self.follow(path);
        let step = rest.strip_prefix('.').unwrap_or(rest);
        let end = match step.strip_prefix("[\"") {
            Some(key) => key.find("\"]").map(|end| end + 4),
            None => step.get(1..).and_then(|inner| inner.find(['.', '['])).map(|end| end + 1),
        };
        (!step.is_empty()).then(|| &path[..path.len() - step.len() + end.unwrap_or(step.len())])
    }

    /// What is at a path.
    pub(super) fn find_mut(&mut self, path: &str) -> Option<&mut Node> {
        let (mut node, mut rest) = (self, path);
        while !rest.is_empty() {
            let (index, after) = node.child(rest)?;
            rest = after;
            node = match &mut node.value {
                Value::Map(entries) => &mut entries.get_mut(index)?.node,
                Value::List(items) => items.get_mut(index)?,
                _ => return None,
            };
        }
        Some(node)
    }

    /// The last value on the way of a path, and what of the path leads nowhere.
    fn follow<'p>(&self, path: &'p str) -> (&Node, &'p str) {
        let (mut node, mut rest) = (self, path);
        while let Some((index, after)) = node.child(rest) {
            let inner = match &node.value {
                Value::Map(entries) => entries.get(index).map(|entry| &entry.node),
                Value::List(items) => items.get(index),
                _ => None,
            };
            let Some(inner) = inner else { break };
            (node, rest) = (inner, after);
        }
        (node, rest)
    }

    /// Which value of this one the first step of a path means, and the rest of the path.
    fn child<'p>(&self, path: &'p str) -> Option<(usize, &'p str)> {
        let path = path.strip_prefix('.').unwrap_or(path);
        match &self.value {
            _ if path.is_empty() => None,
            Value::Map(entries) => entries.iter().enumerate().find_map(|(index, entry)| {
                let after = path.strip_prefix(step(&entry.key).as_str())?;
                (after.is_empty() || after.starts_with(['.', '['])).then_some((index, after))
            }),
            Value::List(items) => {
                let (index, after) = path.strip_prefix('[')?.split_once(']')?;
                let index = index.parse().ok().filter(|index| *index < items.len())?;
                Some((index, after))
            }
            _ => None,
        }
    }
}

/// The path of what a field belongs to; empty for the whole.
pub(in crate::standalone) fn parent(path: &str) -> &str {
    let end = if path.ends_with("\"]") {
        // Within a key every quotation mark has a backslash before it.
        path.rfind("[\"")
    } else if path.ends_with(']') {
        path.rfind('[')
    } else {
        path.rfind('.')
    };
    &path[..end.unwrap_or(0)]
}

/// A field and all that it belongs to, without the whole.
pub(super) fn way_up(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(parent(path))).take_while(|path| !path.is_empty())
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
        for (path, missing, above) in [
            ("spec.list[0].name", None, "spec.list[0]"),
            ("spec.list[0].nothing.more", Some("spec.list[0].nothing"), "spec.list[0].nothing"),
            ("spec.list[7].name", Some("spec.list[7]"), "spec.list[7]"),
            ("spec[\"a.b/c\"]", None, "spec"),
            ("spec[\"b.c\"].more", Some("spec[\"b.c\"]"), "spec[\"b.c\"]"),
            ("nothing", Some("nothing"), ""),
        ] {
            assert_eq!((tree.first_missing(path), parent(path)), (missing, above), "{path}");
        }
        let up: Vec<&str> = way_up("a.b[0][\"c.[d\"].e").collect();
        assert_eq!(up, ["a.b[0][\"c.[d\"].e", "a.b[0][\"c.[d\"]", "a.b[0]", "a.b", "a"]);
    }
}
