//! `numeric` in binary: base-10000 digits, where they begin, and how many decimals are shown.

/// Decimal digits in one of PostgreSQL's.
const GROUP: i64 = 4;
const POSITIVE: u16 = 0;
const NEGATIVE: u16 = 0x4000;
/// PostgreSQL's limits on the digits before and behind the point.
const BEFORE_MAX: i64 = 131_072;
const BEHIND_MAX: i64 = 16_383;

/// Appends the decimal number `text` (`-12.50e3`). `None`: PostgreSQL has no such number.
pub(super) fn put(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let (sign, unsigned) = match text.as_bytes().first()? {
        b'-' => (NEGATIVE, &text[1..]),
        b'+' => (POSITIVE, &text[1..]),
        _ => (POSITIVE, text),
    };
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i64 = exponent.parse().ok()?;
    let shown = (fraction.len() as i64).checked_sub(exponent)?.max(0);
    let digits = whole.bytes().chain(fraction.bytes()).map(|digit| digit - b'0');
    let zeros = digits.clone().take_while(|digit| *digit == 0).count();
    let digits = digits.skip(zeros);
    let length = whole.len() + fraction.len() - zeros;
    // How many of the digits stand before the point; where negative, as many zeros behind it.
    let before = (whole.len() as i64 - zeros as i64).checked_add(exponent)?;
    if shown > BEHIND_MAX || (length > 0 && before > BEFORE_MAX) {
        return None;
    }
    let start = out.len();
    let weight = if length == 0 { 0 } else { (before - 1).div_euclid(GROUP) };
    out.extend([0; 2]);
    out.extend(i16::try_from(weight).ok()?.to_be_bytes());
    out.extend(sign.to_be_bytes());
    out.extend(u16::try_from(shown).ok()?.to_be_bytes());
    let (mut group, mut filled) = (0, GROUP - (before - weight * GROUP));
    if length == 0 {
        filled = 0;
    }
    for digit in digits {
        group = group * 10 + u16::from(digit);
        filled += 1;
        if filled == GROUP {
            out.extend(group.to_be_bytes());
            (group, filled) = (0, 0);
        }
    }
    if filled > 0 {
        group *= 10_u16.pow((GROUP - filled) as u32);
        out.extend(group.to_be_bytes());
    }
    while out.len() > start + 8 && out.ends_with(&[0, 0]) {
        out.truncate(out.len() - 2);
    }
    let groups = u16::try_from((out.len() - start - 8) / 2).ok()?;
    out[start..start + 2].copy_from_slice(&groups.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(text: &str) -> Option<Vec<i16>> {
        let mut out = Vec::new();
        put(text, &mut out)?;
        Some(out.chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect())
    }

    #[test]
    fn numbers_are_cut_at_the_point_into_groups_of_four() {
        let negative = 0x4000;
        for (text, expected) in [
            ("0", vec![0, 0, 0, 0]),
            ("-0.00", vec![0, 0, negative, 2]),
            ("1", vec![1, 0, 0, 0, 1]),
            ("10000", vec![1, 1, 0, 0, 1]),
            ("12345.678", vec![3, 1, 0, 3, 1, 2345, 6780]),
            ("-0.00012", vec![2, -1, negative, 5, 1, 2000]),
            ("0.00001", vec![1, -2, 0, 5, 1000]),
            ("1.5e3", vec![1, 0, 0, 0, 1500]),
            ("15e-1", vec![2, 0, 0, 1, 1, 5000]),
            ("007", vec![1, 0, 0, 0, 7]),
            (".5", vec![1, -1, 0, 1, 5000]),
            ("5.", vec![1, 0, 0, 0, 5]),
        ] {
            assert_eq!(groups(text), Some(expected), "{text}");
        }
        assert_eq!(groups("1e131072"), None);
        assert_eq!(groups("1e-16384"), None);
        assert_eq!(groups("1e99999999999999999999"), None);
        assert!(groups("1e131071").is_some());
    }
}
