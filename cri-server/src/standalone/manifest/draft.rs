//! A tree as a typed structure in spite of values of the wrong type, so that all of them are told at once. Pure.

use std::collections::HashSet;

use serde::Deserialize;

use super::{
    Problem,
    node::{Node, Value, parent},
    typed::read,
};

/// How often a tree is read again without a value of the wrong type.
const AGAIN: usize = 64;

/// Reads a tree as far as it goes: all that is wrong in it, and what it is with something empty in place of
/// every value of the wrong type. Nothing when that are too many.
pub(super) fn draft<T: for<'de> Deserialize<'de>>(node: &Node) -> (Option<T>, Vec<Problem>) {
    let (mut value, mut unknown) = read::<T>(node, "");
    let (mut wrong, mut replaced) = (Vec::new(), HashSet::new());
    let mut tree = None;
    for _ in 0..AGAIN {
        let problem = match value {
            Ok(value) => {
                wrong.append(&mut unknown);
                return (Some(value), wrong);
            }
            Err(problem) => problem,
        };
        let tree = tree.get_or_insert_with(|| node.clone());
        let at = empty(tree, &problem.field).to_owned();
        // What stands in for something need not fit at once: that is nobody's mistake.
        if replaced.insert(problem.field.clone()) {
            wrong.push(problem);
        }
        replaced.insert(at);
        (value, unknown) = read::<T>(tree, "");
    }
    wrong.append(&mut unknown);
    (None, wrong)
}

/// Puts the next empty value in the place of one that does not fit, or of what it belongs to; where that is.
fn empty<'p>(tree: &mut Node, mut field: &'p str) -> &'p str {
    loop {
        if let Some(node) = tree.find_mut(field) {
            let next = match &node.value {
                Value::Null => Some(Value::Text(String::new())),
                Value::Text(text) if text.is_empty() => Some(Value::Map(Vec::new())),
                Value::Map(fields) if fields.is_empty() => None,
                _ => Some(Value::Null),
            };
            if let Some(next) = next {
                node.value = next;
                return field;
            }
        }
        if field.is_empty() {
            return field;
        }
        field = parent(field);
    }
}
