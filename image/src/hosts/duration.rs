//! Spans of time as Go writes them, such as `1s`, `300ms` and `1m30s`. No I/O.

use std::time::Duration;

/// Longest span that is taken: nobody waits a day for a connection.
const MAX_SECONDS: f64 = 86_400.0;

/// Reads a span; the reason of refusal names no key.
pub(super) fn parse(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "is no span of time; write it as \"1s\", \"300ms\" or \"1m30s\"";
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0;
    if rest.is_empty() {
        return Err(FORM);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(FORM)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let number: f64 = number.parse().map_err(|_| FORM)?;
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(FORM),
        };
        seconds += number * factor;
        rest = after;
    }
    if seconds > MAX_SECONDS {
        return Err("is longer than a day");
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| FORM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_go_reads_them() {
        let good = [
            ("1s", 1000),
            ("300ms", 300),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("0", 0),
            ("+2s", 2000),
            ("1h0m", 3_600_000),
            (".5s", 500),
            ("1.s", 1000),
        ];
        for (text, milliseconds) in good {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "1", "s", "1 s", "-1s", "1x", "1..5s", ".s", "1s2", "30000h", "9e9s", "s1", "+"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
