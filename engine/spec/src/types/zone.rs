//! Time zones of timestamps: `UTC`, an IANA name, or an offset such as `+05:30`.

use chrono::{FixedOffset, LocalResult, NaiveDateTime, Offset, TimeZone};
use chrono_tz::Tz;

use crate::suggest::nearest;

/// A zone that was understood.
enum Zone {
    Fixed(FixedOffset),
    Named(Tz),
}

fn read(name: &str) -> Option<Zone> {
    if name.eq_ignore_ascii_case("z") {
        return Some(Zone::Fixed(chrono::Utc.fix()));
    }
    if name.starts_with(['+', '-']) {
        return offset(name).map(Zone::Fixed);
    }
    name.parse().ok().map(Zone::Named)
}

/// `+05:30` or `+0530`, under 24 hours.
pub(super) fn offset(text: &str) -> Option<FixedOffset> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let digits: String = match digits.split_once(':') {
        Some((hours, minutes)) if hours.len() == 2 => format!("{hours}{minutes}"),
        Some(_) => return None,
        None => digits.to_owned(),
    };
    if digits.len() != 4 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes): (i32, i32) = (digits[..2].parse().ok()?, digits[2..].parse().ok()?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60))
}

/// Whether a zone of this name exists; else why not.
pub(super) fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a zone is missing here, such as `UTC`".to_owned());
    }
    if read(name).is_some() {
        return Ok(());
    }
    let near = nearest(name, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()));
    Err(match near {
        Some(near) => format!("`{name}` is not a time zone; did you mean `{near}`?"),
        None => format!("`{name}` is not a time zone; write `UTC`, `+05:30` or a name such as `Europe/Paris`"),
    })
}

/// The UTC time at which clocks of the zone show `local`.
pub(super) fn to_utc(name: &str, local: NaiveDateTime) -> Result<NaiveDateTime, String> {
    let found = match read(name) {
        Some(Zone::Fixed(offset)) => offset.from_local_datetime(&local).map(|time| time.naive_utc()),
        Some(Zone::Named(zone)) => zone.from_local_datetime(&local).map(|time| time.naive_utc()),
        None => return Err(format!("`{name}` is not a time zone")),
    };
    match found {
        LocalResult::Single(time) => Ok(time),
        LocalResult::Ambiguous(..) => {
            Err(format!("clocks in {name} show {local} twice; write the offset, such as `+01:00`"))
        }
        LocalResult::None => Err(format!("clocks in {name} never show {local}")),
    }
}
