//! The official CRI suite (sigs.k8s.io/cri-tools, `critest`): runs it in a machine of its own, and judges
//! its report.
//!
//! Invariant: a spec that fails, a skip that is not on the checked-in list and a listed spec that is not
//! skipped any more are failures. Does not know what the specs do.

pub mod report;
pub mod skips;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use self::{
    report::{Report, State},
    skips::Skips,
};
use crate::rig::Rig;

/// How long one run of the suite may take (ginkgo's notation). It takes a few minutes.
const TIME_LIMIT: &str = "20m";

/// Why the suite could not be run. A spec that fails is none of these.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    /// A file of the suite or of ours.
    #[error("{what} {path}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The suite's report is not what ginkgo writes.
    #[error("read the suite's report {path}; the suite's output is beside it")]
    Report {
        /// The report.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The list of allowed skips is not what it should be.
    #[error("read the list of skips {path}")]
    Skips {
        /// The list.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The suite's program does not run.
    #[error("run {program}: {reason}")]
    Suite {
        /// The program.
        program: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The machine.
    #[error(transparent)]
    Machine(#[from] crate::machine::MachineError),
}

fn file<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ConformanceError + 'a {
    move |source| ConformanceError::File { what, path: path.to_owned(), source }
}

/// One run of the suite.
#[derive(Debug, Clone)]
pub struct Run {
    /// A word for messages and file names.
    pub name: &'static str,
    /// Only specs that match this regular expression.
    pub focus: Option<String>,
    /// How many specs must pass.
    pub least_passed: usize,
    /// Further options of the suite.
    pub options: &'static [&'static str],
}

/// The suite's program, and where its output goes.
#[derive(Debug)]
pub struct Suite {
    /// The program `critest`.
    pub program: PathBuf,
    /// Logs and reports, one of each for every run; made if missing.
    pub output: PathBuf,
}

impl Suite {
    /// What the suite says its version is.
    pub async fn version(&self, rig: &Rig) -> Result<String, ConformanceError> {
        let output = rig.machine.run([&*self.program.to_string_lossy(), "-version"]).await?;
        let version = output.stdout.lines().find_map(|line| line.strip_prefix("critest version: "));
        version.map(str::to_owned).ok_or_else(|| self.bad(format!("no version in {:?}", output.stdout)))
    }

    /// Runs the suite against the daemon of `rig` and prints what it found; answers whether all is well.
    pub async fn run(&self, rig: &Rig, run: &Run, skips: &Skips) -> Result<bool, ConformanceError> {
        fs::create_dir_all(&self.output).map_err(file("make", &self.output))?;
        let log = self.output.join(format!("{}.log", run.name));
        let report = self.output.join(format!("{}.json", run.name));
        for path in [&log, &report] {
            if path.exists() {
                fs::remove_file(path).map_err(file("remove", path))?;
            }
        }
        let pid = rig.machine.spawn(&self.words(rig, run, skips, &report), environment(rig), &log).await?;
        rig.machine.wait(pid).await?;
        let said = fs::read_to_string(&log).map_err(file("read", &log))?;
        if !report.exists() {
            let last: Vec<&str> = said.lines().rev().take(20).collect();
            return Err(self.bad(last.into_iter().rev().collect::<Vec<_>>().join("\n")));
        }
        let report = Report::read(&report)?;
        closing_lines(&said).for_each(|line| println!("{line}"));
        let findings = judge(run, &report, skips);
        for line in &findings {
            println!("FAILED: conformance: {}: {line}", run.name);
        }
        if !findings.is_empty() {
            println!("The suite's output is in {}", log.display());
        }
        Ok(findings.is_empty())
    }

    /// Removes what the suite leaves: shared memory segments, and the pods of specs that have failed. Keeps
    /// the daemon's log.
    pub async fn clean_up(&self, rig: &Rig) -> Result<(), ConformanceError> {
        let bad = |status: tonic::Status| self.bad(format!("clean up after the suite: {status}"));
        for pod in rig.cri().list_pods().await.map_err(bad)? {
            let name = pod.metadata.map(|metadata| metadata.name).unwrap_or_default();
            println!("the suite has left the pod {name}");
            rig.cri().end_pod(&pod.id).await.map_err(bad)?;
        }
        rig.machine.run_well(["ipcrm", "--all"]).await?;
        let log = self.output.join("podhold.log");
        fs::copy(rig.places.log(), &log).map(drop).map_err(file("write", &log))
    }

    fn words(&self, rig: &Rig, run: &Run, skips: &Skips, report: &Path) -> Vec<String> {
        let mut words = vec![
            self.program.display().to_string(),
            format!("--runtime-endpoint=unix://{}", rig.places.socket().display()),
            format!("--ginkgo.json-report={}", report.display()),
            format!("--ginkgo.timeout={TIME_LIMIT}"),
            "--ginkgo.no-color".to_owned(),
        ];
        // The suite itself takes its benchmarks out, by the same option.
        words.extend(skips.by_name().map(|name| format!("--ginkgo.skip={}", literally(name))));
        words.extend(run.focus.iter().map(|focus| format!("--ginkgo.focus={focus}")));
        words.extend(run.options.iter().map(|option| (*option).to_owned()));
        words
    }

    fn bad(&self, reason: String) -> ConformanceError {
        ConformanceError::Suite { program: self.program.clone(), reason }
    }
}

/// The suite leaves files in its temporary directory: one that goes away with the machine.
fn environment(rig: &Rig) -> BTreeMap<String, String> {
    BTreeMap::from([("TMPDIR".into(), rig.machine.directory().display().to_string())])
}

/// `text` as a regular expression that matches it alone.
fn literally(text: &str) -> String {
    let special = |character: &char| !character.is_alphanumeric() && *character != ' ';
    text.chars()
        .flat_map(|character| special(&character).then_some('\\').into_iter().chain([character]))
        .collect()
}

/// The lines with which ginkgo ends.
fn closing_lines(said: &str) -> impl Iterator<Item = &str> {
    said.lines()
        .filter(|line| ["Ran ", "SUCCESS! -- ", "FAIL! -- "].iter().any(|word| line.starts_with(word)))
}

/// Prints each skip, and answers what is wrong with the run, one line for each thing.
fn judge(run: &Run, report: &Report, skips: &Skips) -> Vec<String> {
    let mut findings = Vec::new();
    for spec in &report.specs {
        match &spec.state {
            State::Passed => {
                if let Some(why) = skips.reason(&spec.name).filter(|_| run.focus.is_none()) {
                    findings.push(format!("{} is on the list of skips ({why}), and passes", spec.name));
                }
            }
            // What a focus leaves out is no skip.
            State::LeftOut if run.focus.is_some() => {}
            State::LeftOut | State::Skipped(_) => match skips.reason(&spec.name) {
                Some(why) => println!("skipped: {} ({})", spec.name, spec.state.or(why)),
                None => findings.push(format!("{} was skipped: {}", spec.name, spec.state.or("no reason"))),
            },
            State::Failed(message) => findings.push(format!("{}: {message}", spec.name)),
        }
    }
    let passed = report.specs.iter().filter(|spec| spec.state == State::Passed).count();
    if passed < run.least_passed {
        findings.push(format!("{passed} specs passed; at least {} must", run.least_passed));
    }
    if !report.specs.iter().any(|spec| matches!(spec.state, State::Passed | State::Failed(_))) {
        findings.push("no spec was run".to_owned());
    }
    if !report.succeeded && findings.is_empty() {
        findings.push("the suite says that it has failed".to_owned());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skips() -> Skips {
        Skips::parse("[[skip]]\nwhy = \"not here\"\nspecs = [\"a\"]\n").unwrap()
    }

    fn found(state: State, name: &str, focus: Option<&str>) -> usize {
        let other = report::Spec { name: "other".into(), state: State::Passed };
        let specs = vec![report::Spec { name: name.into(), state }, other];
        let run = Run { name: "test", focus: focus.map(str::to_owned), least_passed: 1, options: &[] };
        judge(&run, &Report { specs, succeeded: true }, &skips()).len()
    }

    #[test]
    fn a_suite_that_has_shrunk_is_no_success() {
        let spec = report::Spec { name: "one".into(), state: State::Passed };
        let report = Report { specs: vec![spec], succeeded: true };
        let run = |least_passed| Run { name: "test", focus: None, least_passed, options: &[] };
        assert_eq!(judge(&run(1), &report, &skips()).len(), 0);
        assert_eq!(judge(&run(2), &report, &skips()).len(), 1);
    }

    #[test]
    fn only_a_listed_spec_may_be_skipped_and_it_must_be() {
        assert_eq!(found(State::Passed, "b", None), 0);
        assert_eq!(found(State::Failed("broken".into()), "b", None), 1);
        assert_eq!(found(State::Skipped("why".into()), "a", None), 0);
        assert_eq!(found(State::LeftOut, "a", None), 0);
        assert_eq!(found(State::Skipped("why".into()), "b", None), 1);
        assert_eq!(found(State::LeftOut, "b", None), 1);
        assert_eq!(found(State::Passed, "a", None), 1);
    }

    #[test]
    fn a_focus_leaves_out_and_still_skips() {
        assert_eq!(found(State::LeftOut, "b", Some("c")), 0);
        assert_eq!(found(State::Skipped("why".into()), "b", Some("b")), 1);
        assert_eq!(found(State::Failed("broken".into()), "b", Some("b")), 1);
    }

    #[test]
    fn a_run_of_nothing_is_no_success() {
        let run = Run { name: "test", focus: Some("nothing".into()), least_passed: 0, options: &[] };
        assert_eq!(judge(&run, &Report { specs: Vec::new(), succeeded: true }, &skips()).len(), 1);
    }

    #[test]
    fn a_name_is_matched_literally() {
        assert_eq!(literally("[k8s.io] a"), r"\[k8s\.io\] a");
    }
}
