//! Kubernetes quantities such as `500m`, `2`, `64Mi`. Pure.

/// Binary and decimal suffixes with their factors.
const SUFFIXES: [(&str, f64); 13] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

/// The number a quantity stands for; `None` when it is not one, or negative.
pub(super) fn parse(text: &str) -> Option<f64> {
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .unwrap_or((text, 1.0));
    let plain =
        digits.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'e' || b == b'E' || b == b'-');
    let value: f64 = digits.parse().ok().filter(|_| plain)?;
    (value >= 0.0 && value.is_finite()).then_some(value * factor)
}

/// Bytes of memory.
pub(super) fn bytes(text: &str) -> Option<i64> {
    parse(text).filter(|value| *value < 9e18).map(|value| value.ceil() as i64)
}

/// Thousandths of a processor.
pub(super) fn milli(text: &str) -> Option<i64> {
    parse(text).filter(|value| *value < 1e9).map(|value| (value * 1000.0).ceil() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_in_every_form() {
        for (text, want) in [("64Mi", 67_108_864), ("1k", 1000), ("128974848", 128_974_848), ("1e3", 1000)] {
            assert_eq!(bytes(text), Some(want), "{text}");
        }
        for (text, want) in [("500m", 500), ("2", 2000), ("0.1", 100), ("1.5", 1500)] {
            assert_eq!(milli(text), Some(want), "{text}");
        }
        for text in ["", "x", "-1", "1Q", "inf", "NaN", "1 Mi"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
