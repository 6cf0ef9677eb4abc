//! What a plain word of YAML means: as Kubernetes reads it, which is YAML 1.1. Pure.

use super::node::Value;

/// The value of a word without quotes.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if let Some(number) = whole(text) {
        return Value::Whole(number);
    }
    match number(text) {
        Some(number) => Value::Number(number),
        None => Value::Text(text.to_owned()),
    }
}

/// Whole numbers in any base; a leading zero is octal, as in `defaultMode: 0644`.
fn whole(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.chars().all(|digit| digit.is_digit(base)) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), base).ok()
}

/// Numbers with a point or an exponent, and whole ones that are too large.
fn number(text: &str) -> Option<f64> {
    let digit = text.trim_start_matches(['-', '+', '.']).bytes().next()?.is_ascii_digit();
    let bytes = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    text.parse().ok().filter(|number: &f64| digit && bytes && number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_they_mean_to_kubernetes() {
        let text = |word: &str| Value::Text(word.to_owned());
        for (word, want) in [
            ("0644", Value::Whole(0o644)),
            ("0o644", Value::Whole(0o644)),
            ("0x1F", Value::Whole(31)),
            ("-7", Value::Whole(-7)),
            ("0", Value::Whole(0)),
            ("0.5", Value::Number(0.5)),
            ("1e3", Value::Number(1000.0)),
            ("99999999999999999999", Value::Number(1e20)),
            ("on", Value::Bool(true)),
            ("No", Value::Bool(false)),
            ("~", Value::Null),
            ("500m", text("500m")),
            ("1.2.3", text("1.2.3")),
            ("08:30", text("08:30")),
            ("089", Value::Number(89.0)),
            ("-", text("-")),
            ("nan", text("nan")),
            ("inf", text("inf")),
            ("0x", text("0x")),
            ("y", text("y")),
        ] {
            assert_eq!(plain(word), want, "{word}");
        }
    }
}
