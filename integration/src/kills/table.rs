//! What was tried and what came of it. Text only.

use std::{collections::BTreeMap, fmt, fmt::Write};

use super::{Kill, Moment, Outcome, Verb, Verdict};

/// All runs so far, by verb and kill point.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<(Verb, String), Row>,
    /// What must not be, with the run it was seen in.
    pub faults: Vec<String>,
}

#[derive(Debug, Default, Clone)]
struct Row {
    runs: usize,
    outcomes: BTreeMap<Outcome, usize>,
    leaks: usize,
    faults: usize,
}

impl Row {
    fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.leaks += other.leaks;
        self.faults += other.faults;
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(*outcome).or_default() += count;
        }
    }

    fn words(&self) -> String {
        let of = |outcome| self.outcomes.get(&outcome).copied().unwrap_or(0);
        let (done, before, between) = (of(Outcome::Done), of(Outcome::Before), of(Outcome::Between));
        format!("| {} | {done} | {before} | {between} | {} | {} |", self.runs, self.faults, self.leaks)
    }
}

impl Table {
    /// Counts a run.
    pub fn add(&mut self, kill: &Kill, verdict: &Verdict) {
        let point = match &kill.moment {
            Moment::Before(step) => format!("before {}", step.name),
            Moment::Answered => "after the answer".to_owned(),
            Moment::At(_) => "at any time".to_owned(),
        };
        let row = Row {
            runs: 1,
            outcomes: BTreeMap::from([(verdict.outcome, 1)]),
            leaks: verdict.leaks.len(),
            faults: verdict.faults.len(),
        };
        self.rows.entry((kill.verb, point)).or_default().add(&row);
        let said = verdict.faults.iter().chain(&verdict.leaks);
        self.faults.extend(said.map(|what| format!("{kill}: {what}")));
    }

    /// How many runs there were.
    pub fn runs(&self) -> usize {
        self.rows.values().map(|row| row.runs).sum()
    }

    /// One line for each verb.
    pub fn by_verb(&self) -> String {
        let mut sums: BTreeMap<Verb, (usize, Row)> = BTreeMap::new();
        let mut all = Row::default();
        for ((verb, _), row) in &self.rows {
            let sum = sums.entry(*verb).or_default();
            sum.0 += 1;
            sum.1.add(row);
            all.add(row);
        }
        let mut text = String::from(
            "| verb | kill points | runs | done | as before | between | faults | leaks |\n|---|---|---|---|---|---|---|---|\n",
        );
        for (verb, (points, row)) in &sums {
            let _ = writeln!(text, "| {verb} | {points} {}", row.words());
        }
        let _ = writeln!(text, "| all | {} {}", self.rows.len(), all.words());
        text
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| verb | kill point | runs | done | as before | between | faults | leaks |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for ((verb, point), row) in &self.rows {
            writeln!(f, "| {verb} | {point} {}", row.words())?;
        }
        Ok(())
    }
}
