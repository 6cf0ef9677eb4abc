//! `--junit`: how a pod ended, as CI systems read it. A test case for each container that counts; one for the pod
//! when something else than a container ended it.

use std::{fmt::Write as _, time::Duration};

use super::{
    super::life::{Outcome, Report, Role, end_of_log},
    Subject, kind, time,
};
use crate::error::Error;

/// Most bytes and lines of a container's log in the report.
const LOG: (usize, usize) = (64 << 10, 1000);

/// The document; `failure` is what failed that is no container.
pub(super) fn of(subject: &Subject, outcome: &Outcome, failure: Option<&Error>) -> String {
    let name = escaped(&subject.name);
    let cases: Vec<&Report> = outcome.containers.iter().collect();
    let failures = cases.iter().filter(|report| report.failure().is_some()).count();
    let skipped = cases.iter().filter(|report| report.last.is_none()).count();
    let reason = outcome.reason().or(failure.map(|_| "HostFailure"));
    let errors = usize::from(reason.is_some());
    let tests = cases.len() + errors;
    let begun = outcome.started.unwrap_or(outcome.finished);
    let seconds = outcome.finished.duration_since(begun).unwrap_or_default().as_secs_f64();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "<testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" \
         skipped=\"{skipped}\" time=\"{seconds:.3}\" timestamp=\"{}\">",
        time(begun)
    );
    for report in cases {
        case(&mut text, &format!("{}.{}", subject.namespace, subject.name), report);
    }
    if let Some(reason) = reason {
        let words = outcome.error.as_ref().or(failure).map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(
            text,
            "<testcase classname=\"{name}\" name=\"pod\"><error type=\"{reason}\" message=\"{}\"/></testcase>",
            escaped(if words.is_empty() { reason } else { &words })
        );
    }
    text.push_str("</testsuite>\n</testsuites>\n");
    text
}

fn case(text: &mut String, class: &str, report: &Report) {
    let ended = report.last.as_ref().map(|run| &run.ended);
    let time = ended.and_then(|ended| ended.finished_at.duration_since(ended.started_at?).ok());
    let _ = writeln!(
        text,
        "<testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\">",
        escaped(class),
        escaped(&report.name),
        time.unwrap_or(Duration::ZERO).as_secs_f64()
    );
    if report.role == Role::Sidecar || report.restarts > 0 {
        let _ = writeln!(
            text,
            "<properties><property name=\"kind\" value=\"{}\"/><property name=\"restarts\" value=\"{}\"/></properties>",
            kind(report.role),
            report.restarts
        );
    }
    match &report.last {
        None => text.push_str("<skipped message=\"never begun\"/>\n"),
        Some(run) => {
            if let Some(code) = report.failure() {
                let reason = escaped(&run.ended.reason);
                let why = run.killed_for();
                let why = why.as_deref().unwrap_or(&run.message);
                let _ = writeln!(
                    text,
                    "<failure type=\"{reason}\" message=\"exit code {code} ({reason})\">{}</failure>",
                    escaped(why)
                );
            }
            let log = end_of_log(&run.log, LOG.0, LOG.1);
            if !log.is_empty() {
                let log = escaped(&String::from_utf8_lossy(&log));
                let _ = writeln!(text, "<system-out>{log}</system-out>");
            }
        }
    }
    text.push_str("</testcase>\n");
}

/// Text as XML 1.0 may hold it.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' | '\t' => safe.push(c),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn what_a_container_says_cannot_leave_its_element() {
        assert_eq!(escaped("<a b=\"c\">&\x1b[0m\n"), "&lt;a b=&quot;c&quot;&gt;&amp;\u{fffd}[0m\n");
    }
}
