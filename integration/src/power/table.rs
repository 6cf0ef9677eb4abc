//! Power cuts and what came of them. Text only.

use std::{collections::BTreeMap, fmt};

use super::{judge::Verdict, life::Step};

/// All cuts so far, by the verb they cut.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<&'static str, Row>,
    /// What must not be, with the cut it was seen after.
    pub faults: Vec<String>,
}

#[derive(Debug, Default, Clone)]
struct Row {
    cuts: usize,
    images: usize,
    reported: usize,
    wrong: usize,
    untrue: usize,
    stays: usize,
}

/// In which verb a cut falls.
pub fn verb_at(steps: &[Step], moment: usize) -> &'static str {
    let within = steps.iter().find(|step| step.begun <= moment && moment < step.ended);
    within.map_or("between verbs", |step| step.name)
}

impl Table {
    /// Counts a cut, which `words` name.
    pub fn add(&mut self, verb: &'static str, words: &str, verdict: &Verdict) {
        let row = self.rows.entry(verb).or_default();
        row.cuts += 1;
        row.images += verdict.images;
        row.reported += usize::from(verdict.reported);
        row.wrong += usize::from(!verdict.wrong.is_empty());
        row.untrue += usize::from(!verdict.untrue.is_empty());
        row.stays += usize::from(!verdict.stays.is_empty());
        self.faults.extend(verdict.faults().map(|what| format!("{words}: {what}")));
    }

    /// How many cuts there were.
    pub fn cuts(&self) -> usize {
        self.rows.values().map(|row| row.cuts).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| cut in | cuts | images found | damage reported | wrong | untrue | not mended |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let mut all = Row::default();
        for (verb, row) in &self.rows {
            line(f, verb, row)?;
            all.cuts += row.cuts;
            all.images += row.images;
            all.reported += row.reported;
            all.wrong += row.wrong;
            all.untrue += row.untrue;
            all.stays += row.stays;
        }
        line(f, "all", &all)
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, row: &Row) -> fmt::Result {
    let Row { cuts, images, reported, wrong, untrue, stays } = row;
    writeln!(f, "| {name} | {cuts} | {images} | {reported} | {wrong} | {untrue} | {stays} |")
}
