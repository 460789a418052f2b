//! The Arrow format, spoken by this test binary as its own child.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, LargeStringArray, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::Int64Type;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use rowmill_step::conformance::Options;
use rowmill_step::{Cardinality, Effects, FailureCode, Outcome};
use rowmill_step_command::{CommandOptions, Format};

use crate::support::{doubled, numbers, options, run, run_with};

/// Runs this binary's `child` below in the given mode. The test harness's own words go to /dev/null; the answers go out on
/// file 3, which is the real standard output.
fn speaking(mode: &str) -> CommandOptions {
    let script = "exec \"$0\" --exact arrow_children::child --ignored --nocapture 3>&1 >/dev/null";
    let exe = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    let mut options = CommandOptions {
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned(), exe],
        format: Format::Arrow,
        ..options("")
    };
    options.env.insert("ROWMILL_TEST_MODE".to_owned(), mode.to_owned());
    options
}

#[test]
#[ignore = "runs only as the child of other tests"]
fn child() {
    let Ok(mode) = std::env::var("ROWMILL_TEST_MODE") else { return };
    use std::io::Write as _;
    let mut raw = File::options().write(true).open("/dev/fd/3").unwrap();
    if mode == "text" {
        raw.write_all(b"hello, this is no Arrow\n").unwrap();
    }
    if mode == "bomb" {
        // A message that announces more than anybody has.
        raw.write_all(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(600));
    }
    let mut writer: Option<StreamWriter<File>> = None;
    for batch in StreamReader::try_new(std::io::stdin().lock(), None).unwrap() {
        let batch = batch.unwrap();
        let n = batch.column_by_name("n").unwrap().as_primitive::<Int64Type>();
        if mode.starts_with("crash") && n.iter().any(|n| n.is_some_and(|n| mode == format!("crash {n}"))) {
            if let Ok(log) = std::env::var("ROWMILL_TEST_LOG") {
                File::options().append(true).create(true).open(log).unwrap().write_all(b"fired\n").unwrap();
            }
            std::process::abort();
        }
        if mode == "hang" {
            std::thread::sleep(std::time::Duration::from_secs(600));
        }
        let doubled: ArrayRef = Arc::new(n.iter().map(|n| n.map(|n| n * 2)).collect::<Int64Array>());
        let answer = match mode.as_str() {
            "errors" => {
                let errors: LargeStringArray =
                    n.iter().map(|n| (n.unwrap() % 4 == 1).then(|| format!("no {}", n.unwrap()))).collect();
                let errors: ArrayRef = Arc::new(errors);
                RecordBatch::try_from_iter_with_nullable([("__error", errors, true), ("doubled", doubled, true)])
            }
            "fan" => {
                let rows: Vec<u32> =
                    (0..n.len() as u32).flat_map(|row| std::iter::repeat_n(row, row as usize)).collect();
                let values: ArrayRef = Arc::new(rows.iter().map(|row| Some(i64::from(*row))).collect::<Int64Array>());
                let rows: ArrayRef = Arc::new(UInt32Array::from(rows));
                RecordBatch::try_from_iter_with_nullable([("doubled", values, true), ("__row", rows, false)])
            }
            "short" => RecordBatch::try_from_iter_with_nullable([("doubled", doubled.slice(1, n.len() - 1), true)]),
            "texts" => {
                let texts: ArrayRef = Arc::new(StringArray::from(vec!["x"; n.len()]));
                RecordBatch::try_from_iter_with_nullable([("doubled", texts, true)])
            }
            _ => RecordBatch::try_from_iter_with_nullable([("doubled", doubled, true)]),
        }
        .unwrap();
        let writer = writer.get_or_insert_with(|| {
            let options = IpcWriteOptions::default();
            let compression = (mode == "compressed").then_some(arrow::ipc::CompressionType::ZSTD);
            let options = options.try_with_compression(compression).unwrap();
            StreamWriter::try_new_with_options(raw.try_clone().unwrap(), &answer.schema(), options).unwrap()
        });
        writer.write(&answer).unwrap();
        writer.flush().unwrap();
    }
}

#[tokio::test]
async fn batches_go_in_and_out() {
    let how = Options { group_rows: Some(7), ..Options::default() };
    let driven = run_with(speaking("double"), numbers(0..100), &how).await;
    assert_eq!(doubled(&driven), (0..100).map(|n| Some(n * 2)).collect::<Vec<_>>());
    assert_eq!((driven.attempts, driven.calls), (15, 15));
}

#[tokio::test]
async fn errors_belong_to_items() {
    let driven = run(speaking("errors"), numbers(0..8)).await;
    assert_eq!(driven.sources, [0, 2, 3, 4, 6, 7]);
    let failures: Vec<_> = driven.failures.iter().map(|(row, f)| (*row, f.code(), f.message())).collect();
    assert_eq!(failures, [(1, FailureCode::Rejected, "no 1"), (5, FailureCode::Rejected, "no 5")]);
}

#[tokio::test]
async fn fan_out_names_the_item() {
    let driven = run(CommandOptions { cardinality: Cardinality::FanOut, ..speaking("fan") }, numbers(0..4)).await;
    assert_eq!(driven.sources, [1, 2, 2, 3, 3, 3]);
    assert_eq!(doubled(&driven), [1, 2, 2, 3, 3, 3].map(Some));
}

#[tokio::test]
async fn a_crash_is_found_by_cutting_the_group_and_a_once_group_is_unknown() {
    let driven = run(speaking("crash 5"), numbers(0..20)).await;
    assert_eq!(
        driven.failures.iter().map(|(row, f)| (*row, f.code())).collect::<Vec<_>>(),
        [(5, FailureCode::Crashed)]
    );
    assert_eq!(driven.outcomes.get(Outcome::Ok), 19);
    let once = CommandOptions { effects: Effects::Once, ..speaking("crash 5") };
    let driven = run(once, numbers(0..20)).await;
    assert_eq!((driven.attempts, driven.outcomes.get(Outcome::Unknown)), (1, 20));
}

#[tokio::test]
async fn what_is_not_trusted_is_refused() {
    let cases = [
        ("text", FailureCode::Decode, "hello"),
        ("bomb", FailureCode::Decode, "1 MiB"),
        ("compressed", FailureCode::Decode, "compressed"),
        ("short", FailureCode::Decode, "0 rows for 1 items"),
        ("texts", FailureCode::Decode, "`doubled`"),
        ("hang", FailureCode::Timeout, "was killed"),
    ];
    for (mode, code, word) in cases {
        let options = CommandOptions { item_timeout: Some(std::time::Duration::from_secs(3)), ..speaking(mode) };
        let driven = run(options, numbers(0..1)).await;
        let failure = &driven.failures[0].1;
        assert!(failure.code() == code && failure.message().contains(word), "{mode}: {failure}");
    }
    let small = CommandOptions { max_answer_bytes: 100, ..speaking("double") };
    let how = Options { group_rows: Some(100), ..Options::default() };
    let driven = run_with(CommandOptions { effects: Effects::Once, ..small }, numbers(0..100), &how).await;
    assert_eq!(driven.failures[0].1.code(), FailureCode::TooLarge);
}
