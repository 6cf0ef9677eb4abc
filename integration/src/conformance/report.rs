//! Ginkgo's JSON report (ginkgo v2, `types.Report`), as far as it is needed. Reads one file.

use std::{fs, path::Path};

use serde::Deserialize;

use super::{ConformanceError, file};

/// How a spec went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It passed.
    Passed,
    /// It was not run, because of the suite's options.
    LeftOut,
    /// It skipped itself; why.
    Skipped(String),
    /// Anything else; what happened, and where.
    Failed(String),
}

impl State {
    /// The reason that came with the state, else `other`.
    pub fn or<'a>(&'a self, other: &'a str) -> &'a str {
        match self {
            Self::Skipped(reason) | Self::Failed(reason) => reason,
            Self::Passed | Self::LeftOut => other,
        }
    }
}

/// One spec.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The texts of its containers and its own, with a blank between them: what ginkgo matches against.
    pub name: String,
    /// How it went.
    pub state: State,
}

/// All specs of a run, in the order of their names.
#[derive(Debug, Clone)]
pub struct Report {
    /// The specs, and set-up steps of the suite that failed.
    pub specs: Vec<Spec>,
    /// What the suite says of itself.
    pub succeeded: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawReport {
    suite_succeeded: bool,
    spec_reports: Option<Vec<RawSpec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawSpec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    failure: Option<RawFailure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawFailure {
    message: String,
    location: Option<RawLocation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawLocation {
    file_name: String,
    line_number: u64,
}

impl Report {
    /// Reads the report `path`.
    pub fn read(path: &Path) -> Result<Self, ConformanceError> {
        let bytes = fs::read(path).map_err(file("read", path))?;
        let raw: Vec<RawReport> = serde_json::from_slice(&bytes)
            .map_err(|source| ConformanceError::Report { path: path.to_owned(), source })?;
        let succeeded = !raw.is_empty() && raw.iter().all(|suite| suite.suite_succeeded);
        let specs = raw.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default());
        let mut specs: Vec<Spec> = specs.filter_map(Spec::from_raw).collect();
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { specs, succeeded })
    }
}

impl Spec {
    fn from_raw(raw: RawSpec) -> Option<Self> {
        let mut texts = raw.container_hierarchy_texts.unwrap_or_default();
        let is_spec = raw.leaf_node_type == "It";
        texts.push(if is_spec { raw.leaf_node_text } else { raw.leaf_node_type });
        let (message, place) = raw.failure.map_or_else(Default::default, |failure| {
            let place = failure.location.map(|at| format!(" ({}:{})", at.file_name, at.line_number));
            (in_one_line(&failure.message), place.unwrap_or_default())
        });
        let state = match raw.state.as_str() {
            "passed" => State::Passed,
            "skipped" if message.is_empty() => State::LeftOut,
            "skipped" => State::Skipped(message),
            other => State::Failed(format!("{other}: {message}{place}")),
        };
        // Steps that set the suite up and went well are of no interest.
        (is_spec || matches!(state, State::Failed(_))).then(|| Self { name: texts.join(" "), state })
    }
}

/// What a person reads of gomega's message: not the inside of Go's values, which follows in braces.
fn in_one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take_while(|line| *line != "{").collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_by_option_is_told_from_a_skip_with_a_reason() {
        let text = r#"[{"SuiteSucceeded": true, "SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
            {"ContainerHierarchyTexts": ["[k8s.io] B", "c"], "LeafNodeType": "It", "LeafNodeText": "d",
             "State": "skipped", "Failure": {"Message": "not here", "Location": {"FileName": "f", "LineNumber": 1}}},
            {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It", "LeafNodeText": "e", "State": "skipped"},
            {"ContainerHierarchyTexts": ["x"], "LeafNodeType": "It", "LeafNodeText": "y", "State": "panicked",
             "Failure": {"Message": "m", "Location": {"FileName": "f.go", "LineNumber": 7}}}]}]"#;
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), text).unwrap();
        let report = Report::read(path.path()).unwrap();
        let states: Vec<(&str, &State)> = report.specs.iter().map(|s| (s.name.as_str(), &s.state)).collect();
        assert_eq!(
            states,
            [
                ("[k8s.io] A e", &State::LeftOut),
                ("[k8s.io] B c d", &State::Skipped("not here".into())),
                ("x y", &State::Failed("panicked: m (f.go:7)".into())),
            ]
        );
    }
}
