//! What is wrong in the document of a pod, and what may only follow from that. Pure.
//!
//! Invariant: a question costs the length of a path, however many flaws there are.

use std::collections::HashSet;

use super::{
    Problem,
    node::{Node, parent, way_up},
};

/// The flaws of a document, and their places.
#[derive(Debug, Clone, Default)]
pub(super) struct Flaws {
    problems: Vec<Problem>,
    fields: HashSet<String>,
    /// What they belong to.
    parents: HashSet<String>,
    /// The same, and all that this belongs to.
    above: HashSet<String>,
}

impl Flaws {
    pub(super) fn of(problems: Vec<Problem>) -> Self {
        let mut flaws = Self::default();
        for problem in &problems {
            let above = parent(&problem.field);
            flaws.fields.insert(problem.field.clone());
            flaws.parents.insert(above.to_owned());
            // What belongs to the same thing is on the same way up.
            for path in way_up(above).chain([""]) {
                if !flaws.above.insert(path.to_owned()) {
                    break;
                }
            }
        }
        flaws.problems = problems;
        flaws
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether a field does not say all that was meant: it is wrong, or a wrong one was meant for it.
    pub(super) fn are_at(&self, path: &str, document: &Node) -> bool {
        if self.problems.is_empty() {
            return false;
        }
        // What is not there may be what a wrong field beside it was meant for.
        let may_be_meant = |missing: &str| self.parents.contains(parent(missing));
        way_up(path).chain([""]).any(|path| self.fields.contains(path))
            || document.first_missing(path).is_some_and(may_be_meant)
    }

    /// Whether a problem of a field may only follow from a flaw.
    pub(super) fn hide(&self, path: &str, document: &Node) -> bool {
        self.above.contains(path) || self.are_at(path, document)
    }
}
