//! Kubernetes quantities such as `500m`, `2`, `64Mi`: exact, and not negative. Pure.

/// Suffixes with their factors, in billionths.
const SUFFIXES: [(&str, i128); 15] = [
    ("Ki", 1_000_000_000 << 10),
    ("Mi", 1_000_000_000 << 20),
    ("Gi", 1_000_000_000 << 30),
    ("Ti", 1_000_000_000 << 40),
    ("Pi", 1_000_000_000 << 50),
    ("Ei", 1_000_000_000 << 60),
    ("n", 1),
    ("u", 1_000),
    ("m", 1_000_000),
    ("k", 1_000_000_000_000),
    ("M", 1_000_000_000_000_000),
    ("G", 1_000_000_000_000_000_000),
    ("T", 1_000_000_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000_000_000),
];
/// One, in billionths.
const ONE: i128 = 1_000_000_000;
/// Most digits before and after the point.
const DIGITS: usize = 18;

/// A quantity, in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Amount(i128);

impl Amount {
    /// Of whole units.
    pub(super) fn of(units: i64) -> Self {
        Self(i128::from(units) * ONE)
    }

    /// Of thousandths.
    pub(super) fn of_thousandths(thousandths: i64) -> Self {
        Self(i128::from(thousandths) * (ONE / 1000))
    }

    /// Reads a quantity; `None` when it is none, or negative, or larger than a number of 64 bits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('+').unwrap_or(text);
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (digits, suffix) = text.split_at(end);
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let is_empty = whole.is_empty() && part.is_empty();
        let is_number = !is_empty && !part.contains('.');
        if !is_number || whole.len() > DIGITS || part.len() > DIGITS {
            return None;
        }
        let mantissa: i128 = format!("0{whole}{part}").parse().ok()?;
        let (factor, divisor) = factor(suffix)?;
        let divisor = divisor.checked_mul(10_i128.checked_pow(u32::try_from(part.len()).ok()?)?)?;
        let value = ceil(mantissa.checked_mul(factor)?, divisor);
        (value <= i128::from(i64::MAX) * ONE).then_some(Self(value))
    }

    /// Whole units, rounded up.
    pub(super) fn units(self) -> i64 {
        self.in_units_of(Self(ONE))
    }

    /// Thousandths, rounded up.
    pub(super) fn thousandths(self) -> i64 {
        self.in_units_of(Self(ONE / 1000))
    }

    /// How many of `divisor` it is, rounded up.
    pub(super) fn in_units_of(self, divisor: Self) -> i64 {
        i64::try_from(ceil(self.0, divisor.0.max(1))).unwrap_or(i64::MAX)
    }

    pub(super) fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// What a suffix multiplies with, in billionths, and divides by.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    if suffix.is_empty() {
        return Some((ONE, 1));
    }
    if let Some((_, factor)) = SUFFIXES.iter().find(|(known, _)| *known == suffix) {
        return Some((*factor, 1));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    if exponent < 0 { Some((ONE, power)) } else { Some((ONE.checked_mul(power)?, 1)) }
}

fn ceil(value: i128, divisor: i128) -> i128 {
    value / divisor + i128::from(value % divisor != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_in_every_form() {
        for (text, units, thousandths) in [
            ("64Mi", 67_108_864, 67_108_864_000),
            ("1k", 1000, 1_000_000),
            ("128974848", 128_974_848, 128_974_848_000),
            ("1e3", 1000, 1_000_000),
            ("15E-1", 2, 1500),
            ("500m", 1, 500),
            ("+2", 2, 2000),
            ("0.1", 1, 100),
            (".5", 1, 500),
            ("1.", 1, 1000),
            ("100u", 1, 1),
            ("1n", 1, 1),
            ("0", 0, 0),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("7E", 7_000_000_000_000_000_000, i64::MAX),
        ] {
            let amount = Amount::parse(text).expect(text);
            assert_eq!((amount.units(), amount.thousandths()), (units, thousandths), "{text}");
        }
        assert_eq!(Amount::parse("100Mi").unwrap().in_units_of(Amount::parse("1Mi").unwrap()), 100);
        assert_eq!(Amount::parse("1500m").unwrap().in_units_of(Amount::of(1)), 2);
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        for text in [
            "",
            "x",
            "-1",
            "1Q",
            "inf",
            "NaN",
            "1 Mi",
            ".",
            "1.2.3",
            "1ee3",
            "e3",
            "1e",
            "8Ei",
            "10E",
            "1e400",
            "99999999999999999999",
            "１",
        ] {
            assert_eq!(Amount::parse(text), None, "{text}");
        }
    }
}
