//! Times and shares as texts: `250ms`, `1.5h`, `1%`.

use std::time::Duration;

use crate::model::Rate;

/// Units of time in milliseconds, the largest first.
const UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The longest time that a text can say: a hundred years.
const MAX_MILLIS: u64 = 100 * 366 * 86_400_000;

/// Reads a time: a number and one of `ms`, `s`, `m`, `h` and `d`.
///
/// # Errors
/// A sentence that says what was wrong.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let shown = || text.chars().take(40).collect::<String>();
    let wrong = || format!("`{}` is not a time; write it as `250ms`, `5s`, `2m`, `1h` or `7d`", shown());
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    if unit.is_empty() && !number.is_empty() {
        return Err(format!("`{}` has no unit; write `{}s` or `{}ms`", shown(), shown(), shown()));
    }
    let unit = unit.trim();
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else { return Err(wrong()) };
    let scaled = decimal(number, *factor).ok_or_else(wrong)?;
    let millis = scaled.ok_or_else(|| format!("`{}` is not a whole number of milliseconds", shown()))?;
    if millis > MAX_MILLIS {
        return Err(format!("`{}` is longer than a hundred years", shown()));
    }
    Ok(Duration::from_millis(millis))
}

/// The shortest exact text of a time of whole milliseconds.
pub(crate) fn format_duration(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    UNITS
        .iter()
        .find(|(_, factor)| millis.is_multiple_of(*factor))
        .map_or_else(|| format!("{millis}ms"), |(unit, factor)| format!("{}{unit}", millis / factor))
}

/// Reads a share: `1%`, `0.5%`.
///
/// # Errors
/// A sentence that says what was wrong.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    let shown = || text.chars().take(40).collect::<String>();
    let wrong = || format!("`{}` is not a share; write it as `1%` or `0.5%`", shown());
    let number = text.trim().strip_suffix('%').ok_or_else(wrong)?.trim_end();
    // `f64` reads names and exponents too.
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(wrong());
    }
    let percent: f64 = number.parse().map_err(|_| wrong())?;
    if percent > 100.0 {
        return Err(format!("`{}` is more than all", shown()));
    }
    Ok(percent / 100.0)
}

/// The calls of `50/s`, `3000/min` or `10/h`.
pub(crate) fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || {
        format!(
            "`{}` is not a rate; write it as `50/s`, `3000/min` or `10/h`",
            text.chars().take(40).collect::<String>()
        )
    };
    let (calls, unit) = text.trim().split_once('/').ok_or_else(wrong)?;
    let (calls, unit) = (calls.trim_end(), unit.trim_start());
    let (_, seconds) = Rate::UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    if calls.is_empty() || !calls.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    match calls.parse() {
        Ok(calls) if calls > 0 => Ok(Rate { calls, seconds }),
        _ => Err(wrong()),
    }
}

/// The text of a share that reads back as the same number.
pub(crate) fn format_share(share: f64) -> String {
    let percent = share * 100.0;
    // The shortest of some texts that divides back to the very number.
    (0..=17)
        .map(|digits| format!("{percent:.digits$}"))
        .find(|text| text.parse::<f64>().is_ok_and(|read| read / 100.0 == share))
        .map_or_else(|| format!("{percent}%"), |text| format!("{text}%"))
}

/// `number * factor`: `None` where `number` is none, an inner `None` where the product is not whole or too large.
fn decimal(number: &str, factor: u64) -> Option<Option<u64>> {
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 || whole.len() > 18 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let product = digits.checked_mul(u128::from(factor))?;
    Some(if product.is_multiple_of(scale) { u64::try_from(product / scale).ok() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times() {
        for (text, millis) in
            [("250ms", 250), ("5s", 5_000), ("1.5 h", 5_400_000), ("2m", 120_000), ("7d", 604_800_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "s", "5", "5 sec", "-5s", "1.2.3s", "1.s", ".5s", "0.5ms", "99999999d", "1e3s", "٣s", "5S"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_duration("10").unwrap_err().contains("`10s`"));
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::from_secs(3600)), "1h");
    }

    #[test]
    fn shares() {
        assert_eq!(parse_share("1%"), Ok(0.01));
        assert_eq!(parse_share(" 0.5 %"), Ok(0.005));
        assert_eq!(parse_share("100%"), Ok(1.0));
        for bad in ["", "%", "1", "-1%", "101%", "nan%", "inf%", "1e1%", "1%%", "1.2.3%"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn texts_read_back(millis in 0_u64..MAX_MILLIS, tenths in 0_u32..=1000) {
            let time = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(time)), Ok(time));
            let share = f64::from(tenths) / 10.0 / 100.0;
            prop_assert_eq!(parse_share(&format_share(share)), Ok(share));
        }
    }
}
