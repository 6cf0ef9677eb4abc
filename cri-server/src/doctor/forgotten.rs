//! Pods whose `podhold run` was killed before it could remove or stop them: they run on, and nobody attends to them.

use std::fs;

use podhold_cgroups::{Cgroups, Driver};
use podhold_sandbox::{Layout, PodId, record};

use super::{Finding, left_over::is_held};
use crate::{config::Config, standalone, state::PodRecord};

const CHECK: &str = "left-over pods";
const COST: &str = "their processes, addresses and host ports are kept until another podhold run";

/// One finding for each such pod.
pub(super) fn all(config: &Config, beside: Option<&Config>) -> Vec<Finding> {
    let mut findings = pods_of(config, true);
    findings.extend(beside.into_iter().flat_map(|beside| pods_of(beside, false)));
    if findings.is_empty() {
        findings.push(Finding::works(CHECK, "no podhold run has left any"));
    }
    findings
}

/// Those of one configuration; `named` tells whether commands have to be told its directories.
fn pods_of(config: &Config, named: bool) -> Vec<Finding> {
    // Whoever has the directory attends to the pods in it.
    if is_held(&config.state_dir) {
        return Vec::new();
    }
    let layout = Layout::new(&config.run_dir, &config.state_dir);
    let names = fs::read_dir(layout.pods_state()).into_iter().flatten().flatten();
    let ids = names.filter_map(|entry| PodId::parse(entry.file_name().to_str()?).ok());
    // Records that cannot be read are told of by whoever opens the directory.
    let records = ids.filter_map(|id| record::read::<PodRecord>(&layout.pod_record(&id)).ok());
    let mut findings: Vec<(String, Finding)> = records
        .filter_map(|record| {
            let run_by = standalone::run_by(&record.config, &config.run_dir)?;
            Some((record.id.to_string(), finding(config, &record, run_by, named)?))
        })
        .collect();
    findings.sort_by(|(left, _), (right, _)| left.cmp(right));
    findings.into_iter().map(|(_, finding)| finding).collect()
}

/// Nothing of a pod that is kept and does not run: that was asked for.
fn finding(config: &Config, record: &PodRecord, run_by: &str, named: bool) -> Option<Finding> {
    let of = record.config.metadata.clone().unwrap_or_default();
    // Whoever has made it, its path is the same.
    let cgroups = Cgroups::detect(Driver::Cgroupfs);
    let processes = cgroups.ok().and_then(|cgroups| cgroups.procs(&record.cgroup).ok()).unwrap_or_default();
    let kept = standalone::is_kept(&record.config);
    if kept && processes.is_empty() {
        return None;
    }
    let running = match processes.as_slice() {
        [] => "no process of it runs".to_owned(),
        some => {
            let first: Vec<String> = some.iter().take(5).map(ToString::to_string).collect();
            let more = if some.len() > first.len() { ", …" } else { "" };
            format!("{} of its processes run ({}{more})", some.len(), first.join(", "))
        }
    };
    let short: String = record.id.as_str().chars().take(13).collect();
    let found = format!(
        "{}/{} ({short}): its podhold run, process {run_by}, is gone; {running}, and its records are in {}",
        of.namespace,
        of.name,
        config.state_dir.display()
    );
    let (run, state) = (config.run_dir.display(), config.state_dir.display());
    let options = if named { format!(" --run-dir {run} --state-dir {state}") } else { String::new() };
    let command = if kept { "stop" } else { "rm --force" };
    let mend =
        format!("podhold {command}{options} {short}, or podhold doctor --fix{options} for all of them");
    Some(Finding::degraded(CHECK, found, COST, mend))
}
