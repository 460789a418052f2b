//! Values from texts and back.

use proptest::prelude::*;

use super::*;

fn parse(kind: &str, text: &str) -> Result<Value, String> {
    Value::parse(&LogicalType::parse(kind).unwrap(), text)
}

#[test]
fn values_read_and_print() {
    for (kind, text, printed) in [
        ("bool", "true", "true"),
        ("int8", "-128", "-128"),
        ("int64", "9223372036854775807", "9223372036854775807"),
        ("uint64", "18446744073709551615", "18446744073709551615"),
        ("float64", "1e3", "1000.0"),
        ("float64", ".inf", "inf"),
        ("float32", "0.1", "0.1"),
        ("decimal(10, 2)", "-12.5", "-12.50"),
        ("decimal(10, 2)", "0.05", "0.05"),
        ("decimal(3, 3)", ".125", "0.125"),
        ("decimal(38, 0)", "99999999999999999999999999999999999999", "99999999999999999999999999999999999999"),
        ("string", " as it is ", " as it is "),
        ("string", "null", "null"),
        ("date", "1969-12-31", "1969-12-31"),
        ("timestamp(s)", "2013-01-31 09:30", "2013-01-31T09:30:00"),
        ("timestamp(ms)", "2013-01-31T09:30:00.125", "2013-01-31T09:30:00.125"),
        ("timestamp(us)", "2013-01-31", "2013-01-31T00:00:00"),
        ("timestamp(us, UTC)", "2013-01-31T09:30:00+01:00", "2013-01-31T08:30:00Z"),
        ("timestamp(s, Europe/Paris)", "2013-07-01 12:00:00", "2013-07-01T10:00:00Z"),
        ("timestamp(s, +05:30)", "2013-07-01 05:30:00", "2013-07-01T00:00:00Z"),
        ("list<int64>", "[1, 2]", "[1, 2]"),
        ("list<string>", "[a, 'b c', \"1\"]", "[\"a\", \"b c\", \"1\"]"),
        ("list<date>", "[2013-01-01, null]", "[2013-01-01, null]"),
        ("int32", "null", "null"),
    ] {
        let value = parse(kind, text).unwrap_or_else(|error| panic!("{kind} {text}: {error}"));
        assert_eq!(value.to_string(), printed, "{kind} {text}");
        assert_eq!(value.logical_type(), LogicalType::parse(kind).unwrap());
        assert_eq!(parse(kind, printed).unwrap(), value, "{printed} does not read back");
    }
}

#[test]
fn wrong_values_are_refused() {
    for (kind, text) in [
        ("bool", "yes"),
        ("bool", "1"),
        ("int8", "128"),
        ("int8", "-129"),
        ("uint8", "-1"),
        ("uint64", "18446744073709551616"),
        ("int64", "1.0"),
        ("int64", "1e3"),
        ("int64", ""),
        ("int64", "0x10"),
        ("int64", "1_000"),
        ("int64", "+-1"),
        ("int64", "999999999999999999999999999999999999999999999"),
        ("float64", "1e999"),
        ("float64", "infinity"),
        ("float32", "1e39"),
        ("float64", "e"),
        ("decimal(5, 2)", "1.234"),
        ("decimal(5, 2)", "1234"),
        ("decimal(5, 2)", "1e2"),
        ("decimal(5, 2)", "."),
        ("decimal(5, 2)", "--1"),
        ("date", "2013-02-29"),
        ("date", "2013-1-1"),
        ("date", "13-01-01"),
        ("date", "2013-01-01T00:00"),
        ("date", "+013-01-01"),
        ("timestamp", "2013-01-01 24:00"),
        ("timestamp", "2013-01-01T00:00:00Z"),
        ("timestamp(s)", "2013-01-01 00:00:00.5"),
        ("timestamp(ns)", "2500-01-01"),
        ("timestamp(us)", "2013-01-01 0:00"),
        ("timestamp(s, Europe/Paris)", "2013-03-31 02:30:00"),
        ("timestamp(s, Europe/Paris)", "2013-10-27 02:30:00"),
        ("timestamp(us)", "é2013-01-01"),
        ("list<int64>", "1"),
        ("list<int64>", "[1, x]"),
        ("list<int64>", "[[1]]"),
        ("list<int64>", "[1"),
        ("binary", "x"),
        ("time(us)", "10:00"),
        ("struct<a: int8>", "{}"),
        ("list<binary>", "[]"),
    ] {
        assert!(parse(kind, text).is_err(), "{kind} took {text:?}");
    }
}

#[test]
fn errors_say_what_is_wanted() {
    assert_eq!(parse("int8", "200").unwrap_err(), "200 is out of the range of int8, -128 to 127");
    assert!(parse("timestamp", "2013-01-01T00:00:00Z").unwrap_err().contains("timestamp(us, UTC)"));
    assert!(parse("timestamp(s, Europe/Paris)", "2013-10-27 02:30:00").unwrap_err().contains("twice"));
    let long = "x".repeat(10_000);
    assert!(parse("int8", &long).unwrap_err().len() < 200);
}

#[test]
fn leap_seconds_and_ends_of_time() {
    assert!(parse("timestamp(s)", "2016-12-31 23:59:60").is_err());
    assert!(parse("timestamp(s)", "9999-12-31 23:59:59").is_ok());
    assert!(parse("date", "0000-01-01").is_ok());
    assert!(parse("timestamp(us, +23:59)", "0000-01-01T00:00:00+23:59").is_ok());
}

proptest! {
    #[test]
    fn integers_read_back(value: i64) {
        prop_assert_eq!(parse("int64", &value.to_string()).unwrap(), Value::from(value));
    }

    #[test]
    fn floats_read_back(value in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
        let kind = LogicalType::Float64;
        prop_assert_eq!(Value::parse(&kind, &Value::from(value).to_string()).unwrap(), Value::from(value));
    }

    #[test]
    fn decimals_are_exact(unscaled in -10_i128.pow(38) + 1..10_i128.pow(38), scale in 0_i8..=38) {
        let value = Value::Decimal { unscaled, precision: 38, scale };
        let kind = LogicalType::Decimal { precision: 38, scale };
        prop_assert_eq!(Value::parse(&kind, &value.to_string()).unwrap(), value);
    }

    #[test]
    fn dates_read_back(days in -719_528_i32..2_932_896) {
        let value = Value::Date(days);
        prop_assert_eq!(Value::parse(&LogicalType::Date, &value.to_string()).unwrap(), value);
    }

    #[test]
    fn timestamps_read_back(value in -62_167_219_200_000_000_i64..253_402_300_799_999_999, zoned: bool) {
        let zone = zoned.then(|| "UTC".to_owned());
        let value = Value::Timestamp { value, unit: TimeUnit::Microsecond, zone: zone.clone() };
        let kind = LogicalType::Timestamp { unit: TimeUnit::Microsecond, zone };
        prop_assert_eq!(Value::parse(&kind, &value.to_string()).unwrap(), value);
    }

    #[test]
    fn no_text_panics(text in any::<String>(), digits in "[-+0-9:.TZ e,\\[\\]']{0,40}") {
        for kind in ["bool", "int8", "uint64", "float32", "decimal(20, 5)", "date", "timestamp(ns)", "timestamp(s, Europe/Paris)", "list<timestamp>"] {
            for text in [&text, &digits] {
                if let Ok(value) = parse(kind, text) {
                    let printed = value.to_string();
                    let _ = parse(kind, &printed);
                }
            }
        }
        let _ = LogicalType::parse(&text);
    }
}
