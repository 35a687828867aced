//! Types of columns: how a field's text becomes a value, and which type holds all fields of a column.
//!
//! Inference collects what was seen as a set, and a set has one answer: the order of rows and pieces does not matter, and
//! every field that was seen converts to the type that comes out.

use crate::error::{Error, Result};
use arrow_schema::{DataType, TimeUnit};

const BOOL: u8 = 1;
const INT: u8 = 2;
const FLOAT: u8 = 4;
const DATE: u8 = 8;
const STAMP: u8 = 16;
const ZONED: u8 = 32;
const TEXT: u8 = 64;
/// A time outside of what 64 bits of nanoseconds hold.
const FAR: u8 = 128;
/// Seconds since 1970 whose nanoseconds fit 64 bits: the years 1677 to 2262.
const NANOSECOND_YEARS: std::ops::Range<i64> = -9_223_372_036..9_223_372_036;

/// What the fields of a column looked like.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    bits: u8,
    /// Digits of a second's fraction, rounded up to 0, 3, 6 or 9.
    digits: u8,
    pub(super) null: bool,
}

impl Seen {
    pub(super) fn merge(&mut self, other: Seen) {
        self.bits |= other.bits;
        self.digits = self.digits.max(other.digits);
        self.null |= other.null;
    }

    #[inline]
    pub(super) fn add(&mut self, text: &[u8]) {
        if self.bits & TEXT == 0 {
            let (bits, digits) = classify(text);
            self.bits |= bits;
            self.digits = self.digits.max(digits);
        }
    }

    /// The narrowest type that holds all of it.
    pub(super) fn data_type(self) -> DataType {
        let unit = match self.digits {
            0 => TimeUnit::Second,
            3 => TimeUnit::Millisecond,
            6 => TimeUnit::Microsecond,
            _ => TimeUnit::Nanosecond,
        };
        let too_far = unit == TimeUnit::Nanosecond && self.bits & FAR != 0;
        match self.bits & !FAR {
            BOOL => DataType::Boolean,
            INT => DataType::Int64,
            b if b & !(INT | FLOAT) == 0 && b != 0 => DataType::Float64,
            DATE => DataType::Date32,
            b if b & !(DATE | STAMP) == 0 && b != 0 && !too_far => DataType::Timestamp(unit, None),
            ZONED if !too_far => DataType::Timestamp(unit, Some("UTC".into())),
            _ => DataType::Utf8,
        }
    }
}

fn classify(text: &[u8]) -> (u8, u8) {
    let Some(&first) = text.first() else { return (TEXT, 0) };
    match first {
        b'0'..=b'9' | b'-' | b'.' => {
            let digits = text.strip_prefix(b"-").unwrap_or(text);
            if digits.len() > 1 && digits[0] == b'0' && digits[1].is_ascii_digit() {
                // Codes such as 00501 lose their meaning as numbers; a year before 1000 is a date all the same.
                return time_class(text);
            }
            if digits.iter().all(u8::is_ascii_digit) && !digits.is_empty() {
                // An integer beyond 64 bits stays text, because a float would drop digits.
                return if parse_int(text).is_some() { (INT, 0) } else { (TEXT, 0) };
            }
            if parse_float(text).is_some() {
                return (FLOAT, 0);
            }
            time_class(text)
        }
        // What Arrow's own CSV reader takes for booleans by default, without its 1 and 0, which are integers first there too.
        b't' | b'T' | b'f' | b'F' if matches!(text, b"true" | b"True" | b"TRUE" | b"false" | b"False" | b"FALSE") => (BOOL, 0),
        b'N' | b'n' | b'i' | b'I' if parse_float(text).is_some() => (FLOAT, 0),
        _ => (TEXT, 0),
    }
}

fn time_class(text: &[u8]) -> (u8, u8) {
    if text.len() == 10 {
        return match parse_date(text) {
            Some(days) => (DATE | if NANOSECOND_YEARS.contains(&(days as i64 * 86_400)) { 0 } else { FAR }, 0),
            None => (TEXT, 0),
        };
    }
    match parse_time(text) {
        Some(t) => {
            let far = if NANOSECOND_YEARS.contains(&t.seconds) { 0 } else { FAR };
            (far | if t.zoned { ZONED } else { STAMP }, t.digits.div_ceil(3) * 3)
        }
        None => (TEXT, 0),
    }
}

#[inline]
pub(super) fn parse_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    if digits.len() <= 18 {
        let mut n = 0i64;
        for &d in digits {
            let d = d.wrapping_sub(b'0');
            if d > 9 {
                return None;
            }
            n = n * 10 + d as i64;
        }
        return Some(if negative { -n } else { n });
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Decimal numbers, `NaN`, `inf`, `Infinity`. Short ones are exact by one multiplication or division (Clinger 1990), the rest
/// goes through the standard library's correctly rounded parser.
#[inline]
pub(super) fn parse_float(text: &[u8]) -> Option<f64> {
    const POWERS: [f64; 23] =
        [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22];
    let negative = text.first() == Some(&b'-');
    let mut at = usize::from(matches!(text.first(), Some(b'-' | b'+')));
    let start = at;
    let (mut mantissa, mut digits, mut fraction) = (0u64, 0, 0);
    while let Some(d @ b'0'..=b'9') = text.get(at) {
        mantissa = mantissa.wrapping_mul(10).wrapping_add((d - b'0') as u64);
        digits += 1;
        at += 1;
    }
    if text.get(at) == Some(&b'.') {
        at += 1;
        while let Some(d @ b'0'..=b'9') = text.get(at) {
            mantissa = mantissa.wrapping_mul(10).wrapping_add((d - b'0') as u64);
            fraction += 1;
            at += 1;
        }
        digits += fraction;
    }
    if digits == 0 {
        return match &text[start..] {
            b"NaN" | b"nan" if start == 0 => Some(f64::NAN),
            b"inf" | b"Inf" | b"Infinity" => Some(if negative { f64::NEG_INFINITY } else { f64::INFINITY }),
            _ => None,
        };
    }
    if at == text.len() && digits <= 15 && fraction <= 22 {
        let value = mantissa as f64 / POWERS[fraction];
        return Some(if negative { -value } else { value });
    }
    if let Some(b'e' | b'E') = text.get(at) {
        at += 1 + usize::from(matches!(text.get(at + 1), Some(b'-' | b'+')));
        let exponent = at;
        while let Some(b'0'..=b'9') = text.get(at) {
            at += 1;
        }
        if at == exponent {
            return None;
        }
    }
    if at != text.len() { None } else { std::str::from_utf8(text).ok()?.parse().ok() }
}

pub(super) fn parse_bool(text: &[u8]) -> Option<bool> {
    match text {
        b"1" => Some(true),
        b"0" => Some(false),
        _ if text.eq_ignore_ascii_case(b"true") || text.eq_ignore_ascii_case(b"t") => Some(true),
        _ if text.eq_ignore_ascii_case(b"false") || text.eq_ignore_ascii_case(b"f") => Some(false),
        _ => None,
    }
}

fn number(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + (d - b'0') as i64))
}

/// `YYYY-MM-DD` as days since 1970-01-01 in the proleptic Gregorian calendar.
pub(super) fn parse_date(text: &[u8]) -> Option<i32> {
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let (y, m, d) = (number(&text[..4])?, number(&text[5..7])?, number(&text[8..])?);
    let leap = y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let days = match m {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if d < 1 || d > days {
        return None;
    }
    // Days from civil, after Howard Hinnant: years begin in March, eras have 400 years.
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * ((m + 9) % 12) + 2) / 5 + d - 1;
    Some((era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468) as i32)
}

/// Year, month, day of days since 1970-01-01.
pub(super) fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// A point in time.
pub(super) struct Time {
    /// Since 1970-01-01T00:00:00, of UTC when `zoned`, otherwise of the wall clock.
    pub(super) seconds: i64,
    pub(super) nanos: i64,
    /// Digits of the fraction.
    pub(super) digits: u8,
    pub(super) zoned: bool,
}

/// `YYYY-MM-DD`, then optionally `T` or a space, `HH:MM[:SS[.fraction]]`, then optionally `Z`, `±HH`, `±HHMM` or `±HH:MM`.
pub(super) fn parse_time(text: &[u8]) -> Option<Time> {
    let days = parse_date(text.get(..10)?)? as i64;
    let mut time = Time { seconds: days * 86_400, nanos: 0, digits: 0, zoned: false };
    let rest = &text[10..];
    if rest.is_empty() {
        return Some(time);
    }
    if rest.len() < 6 || !matches!(rest[0], b'T' | b't' | b' ') || rest[3] != b':' {
        return None;
    }
    let (h, m) = (number(&rest[1..3])?, number(&rest[4..6])?);
    let mut rest = &rest[6..];
    let mut s = 0;
    if rest.first() == Some(&b':') {
        s = number(rest.get(1..3)?)?;
        rest = &rest[3..];
        if let Some(b'.' | b',') = rest.first() {
            let len = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
            if len == 0 || len > 9 {
                return None;
            }
            time.nanos = number(&rest[1..1 + len])? * 10i64.pow(9 - len as u32);
            time.digits = len as u8;
            rest = &rest[1 + len..];
        }
    }
    if h > 23 || m > 59 || s > 59 {
        return None;
    }
    time.seconds += h * 3600 + m * 60 + s;
    if let Some(offset) = parse_offset(rest) {
        time.seconds -= offset;
        time.zoned = true;
        rest = &[];
    }
    rest.is_empty().then_some(time)
}

/// Seconds east of UTC.
pub(super) fn parse_offset(text: &[u8]) -> Option<i64> {
    let sign = match text {
        b"Z" | b"z" | b"UTC" => return Some(0),
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    let (h, m) = match text.len() {
        3 => (number(&text[1..3])?, 0),
        5 => (number(&text[1..3])?, number(&text[3..5])?),
        6 if text[3] == b':' => (number(&text[1..3])?, number(&text[4..6])?),
        _ => return None,
    };
    (h < 24 && m < 60).then_some(sign * (h * 3600 + m * 60))
}

/// Units per second.
pub(super) fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

const NAMES: [(&str, DataType); 12] = [
    ("bool", DataType::Boolean),
    ("int8", DataType::Int8),
    ("int16", DataType::Int16),
    ("int32", DataType::Int32),
    ("int64", DataType::Int64),
    ("uint8", DataType::UInt8),
    ("uint16", DataType::UInt16),
    ("uint32", DataType::UInt32),
    ("float32", DataType::Float32),
    ("float64", DataType::Float64),
    ("string", DataType::Utf8),
    ("date", DataType::Date32),
];
const UNITS: [(&str, TimeUnit); 4] =
    [("s", TimeUnit::Second), ("ms", TimeUnit::Millisecond), ("us", TimeUnit::Microsecond), ("ns", TimeUnit::Nanosecond)];

/// The type of a name such as `int64` or `timestamp[ms, +02:00]`.
pub(super) fn type_of_name(column: &str, name: &str) -> Result<DataType> {
    let inner = name.strip_prefix("timestamp[").and_then(|n| n.strip_suffix(']'));
    let stamp = inner.and_then(|inner| {
        let (unit, zone) = match inner.split_once(',') {
            Some((unit, zone)) => (unit, Some(zone.trim())),
            None => (inner, None),
        };
        let unit = UNITS.iter().find(|u| u.0 == unit)?.1;
        match zone {
            Some(zone) if parse_offset(zone.as_bytes()).is_none() || zone.eq_ignore_ascii_case("z") => None,
            zone => Some(DataType::Timestamp(unit, zone.map(Into::into))),
        }
    });
    stamp.or_else(|| NAMES.iter().find(|n| n.0 == name).map(|n| n.1.clone())).ok_or_else(|| {
        Error::invalid("unknown column type")
            .with("column", column)
            .with("type", name.chars().take(80).collect::<String>())
            .with("want", NAMES.map(|n| n.0).join(" ") + " timestamp[s|ms|us|ns] timestamp[ms, UTC] timestamp[ms, +02:00]")
    })
}

/// The name that [`type_of_name`] reads.
pub(super) fn name_of_type(of: &DataType) -> String {
    if let DataType::Timestamp(unit, zone) = of {
        let unit = UNITS.iter().find(|u| u.1 == *unit).map_or("", |u| u.0);
        return match zone {
            Some(zone) => format!("timestamp[{unit}, {zone}]"),
            None => format!("timestamp[{unit}]"),
        };
    }
    NAMES.iter().find(|n| n.1 == *of).map_or_else(|| of.to_string(), |n| n.0.to_owned())
}
