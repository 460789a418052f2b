//! The kinds of functions, and how they fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use parking_lot::Mutex;
use rowmill_step::{Effects, FailureCode, Outcome, Sent};
use rowmill_step_python::{Kind, Output};

use crate::support::{context, doubled, interpreter, module, numbers, options, run};

const MODULE: &str = r#"
import asyncio, os, sys, ctypes
import pyarrow as pa, pyarrow.compute as pc

def row(n):
    if n == 13: raise KeyError("thirteen")
    return n * 2

def wrong_type(n):
    return "many" if n == 3 else n * 2

def batch(n: pa.Array):
    return pc.multiply(n, 2)

def bad_batch(n: pa.Array):
    if 5 in n.to_pylist(): raise RuntimeError("five is alive")
    return pc.multiply(n, 2)

async def sleeper(n):
    await asyncio.sleep(0.05)
    return n * 2

def each(n):
    for _ in range(n % 3): yield n * 2

class Warm:
    def __init__(self):
        print("made once", flush=True)
        self.factor = 2
    def __call__(self, n):
        return n * self.factor

def segfault(n):
    if n == 7: ctypes.string_at(0)
    return n * 2

def leak(n):
    if n == 2: held = bytearray(1 << 31)
    return n * 2

def chatty(n):
    print("printed", n)
    os.write(1, b"written\n")
    return n * 2
"#;

#[tokio::test]
async fn a_row_that_raises_fails_alone_and_keeps_its_traceback() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let driven = run(options(&python, folder.path(), "row"), numbers(0..100)).await;
    assert_eq!((driven.failures.len(), driven.attempts), (1, 1), "{:?}", driven.failures);
    let (row, failure) = &driven.failures[0];
    assert_eq!((*row, failure.code(), failure.how_far()), (13, FailureCode::Rejected, Sent::Answered));
    assert_eq!(failure.message(), "KeyError: 'thirteen'");
    let traceback = &failure.fields()[0];
    assert!(traceback.0 == "traceback" && traceback.1.contains("functions.py") && traceback.1.contains("thirteen"));
    assert!(!traceback.1.contains("rowmill/_functions"), "frames of the machinery are left out: {}", traceback.1);
    assert_eq!(doubled(&driven).len(), 99);
}

#[tokio::test]
async fn an_answer_of_another_type_fails_its_row() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let driven = run(options(&python, folder.path(), "wrong_type"), numbers(0..6)).await;
    let rows: Vec<u64> = driven.failures.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [3]);
    assert!(driven.failures[0].1.message().contains("'many'"), "{}", driven.failures[0].1);
}

#[tokio::test]
async fn columns_go_to_batch_functions_and_a_bad_row_is_found_by_bisection() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let of = |function: &str| {
        let mut options = options(&python, folder.path(), function);
        options.kind = Some(Kind::Batch);
        options
    };
    let driven = run(of("batch"), numbers(0..10_000)).await;
    assert_eq!(doubled(&driven), (0..10_000).map(|n| Some(n * 2)).collect::<Vec<_>>());
    let driven = run(of("bad_batch"), numbers(0..64)).await;
    let rows: Vec<u64> = driven.failures.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [5], "{:?}", driven.failures);
    assert!(driven.failures[0].1.message().contains("five is alive"));
    // What may have had effects is not tried again: all of the group is unknown.
    let mut once = of("bad_batch");
    once.effects = Effects::Once;
    let driven = run(once, numbers(0..64)).await;
    assert_eq!((driven.outcomes.get(Outcome::Unknown), driven.attempts), (64, 1));
}

#[tokio::test]
async fn async_functions_wait_together() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let mut options = options(&python, folder.path(), "sleeper");
    options.kind = Some(Kind::Async);
    options.in_flight = 500;
    let started = Instant::now();
    let driven = run(options, numbers(0..1000)).await;
    assert_eq!(doubled(&driven), (0..1000).map(|n| Some(n * 2)).collect::<Vec<_>>());
    assert!(started.elapsed() < Duration::from_secs(25), "one after the other it would be 50 s");
}

#[tokio::test]
async fn generators_fan_out() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    for effects in [Effects::Pure, Effects::Once] {
        let mut options = options(&python, folder.path(), "each");
        options.kind = Some(Kind::Generator);
        options.effects = effects;
        let driven = run(options, numbers(0..6)).await;
        assert_eq!(driven.sources, [1, 2, 2, 4, 5, 5]);
        assert_eq!(doubled(&driven), [2, 4, 4, 8, 10, 10].map(Some));
    }
}

#[tokio::test]
async fn a_class_is_made_once_and_what_it_prints_reaches_the_user() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let printed = Arc::new(Mutex::new(Vec::new()));
    let mut options = options(&python, folder.path(), "Warm");
    let seen = printed.clone();
    options.printed = Output(Arc::new(move |text| seen.lock().extend_from_slice(text)));
    options.target.rows = 3;
    let driven = run(options, numbers(0..10)).await;
    assert_eq!(doubled(&driven), (0..10).map(|n| Some(n * 2)).collect::<Vec<_>>());
    assert_eq!(String::from_utf8_lossy(&printed.lock()), "made once\n");
}

#[tokio::test]
async fn printing_does_not_disturb_the_conversation() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let printed = Arc::new(Mutex::new(Vec::new()));
    let mut options = options(&python, folder.path(), "chatty");
    let seen = printed.clone();
    options.printed = Output(Arc::new(move |text| seen.lock().extend_from_slice(text)));
    let driven = run(options, numbers(0..3)).await;
    assert_eq!(doubled(&driven), [0, 2, 4].map(Some));
    let text = String::from_utf8_lossy(&printed.lock()).into_owned();
    assert_eq!(text.matches("printed").count() + text.matches("written").count(), 6, "{text}");
}

#[tokio::test]
async fn a_segfault_fails_the_item_that_caused_it() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    for (effects, outcome) in [(Effects::Pure, Outcome::Failed), (Effects::Once, Outcome::Unknown)] {
        let mut options = options(&python, folder.path(), "segfault");
        options.effects = effects;
        let driven = run(options, numbers(0..16)).await;
        let rows: Vec<u64> = driven.failures.iter().map(|(row, _)| *row).collect();
        assert_eq!(rows, [7], "{:?}", driven.failures);
        assert!(driven.failures[0].1.message().contains("signal 11"), "{}", driven.failures[0].1);
        assert_eq!((driven.outcomes.get(outcome), driven.outcomes.get(Outcome::Ok)), (1, 15));
    }
}

#[tokio::test]
async fn memory_beyond_the_limit_is_the_items_failure() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let mut options = options(&python, folder.path(), "leak");
    options.limits.memory_bytes = Some(1 << 30);
    let driven = run(options, numbers(0..4)).await;
    let rows: Vec<u64> = driven.failures.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [2], "{:?}", driven.failures);
    assert!(driven.failures[0].1.message().contains("MemoryError"), "{}", driven.failures[0].1);
}

#[tokio::test]
async fn what_cannot_be_loaded_is_said_before_any_item() {
    let Some(python) = interpreter() else { return };
    let folder = module("import nonsense_that_is_not_there\ndef row(n): return n");
    let step = rowmill_step_python::PythonStep::try_new(options(&python, folder.path(), "row")).unwrap();
    let input = numbers(0..1);
    let output = Arc::new(Schema::new(vec![Field::new("doubled", DataType::Int64, true)]));
    let shape = rowmill_step::StepShape { input: input.schema(), output };
    let opened = rowmill_step::StepExecutor::open(&step, &context(), &shape).await;
    let failure = opened.err().unwrap();
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Setup, Sent::Never));
    assert!(failure.message().contains("ModuleNotFoundError"), "{failure}");
    assert!(failure.message().contains("nonsense_that_is_not_there"), "{failure}");
    let mut missing = options("/no/such/python", folder.path(), "row");
    missing.target.in_flight = 1;
    let step = rowmill_step_python::PythonStep::try_new(missing).unwrap();
    let failure = rowmill_step::StepExecutor::open(&step, &context(), &shape).await.err().unwrap();
    assert!(failure.message().contains("no interpreter"), "{failure}");
}

#[tokio::test]
async fn text_and_answers_with_fields_cross() {
    let Some(python) = interpreter() else { return };
    let folder = module("def split(n):\n    return {'word': f'n{n}' if n else None, 'half': n / 2}\n");
    let mut options = options(&python, folder.path(), "split");
    options.many = true;
    options.output = Arc::new(Schema::new(vec![
        Field::new("word", DataType::Utf8View, true),
        Field::new("half", DataType::Float64, true),
    ]));
    let driven = run(options, numbers(0..3)).await;
    let words: Vec<Option<&str>> = driven.output.column(0).as_string_view().iter().collect();
    assert_eq!(words, [None, Some("n1"), Some("n2")]);
    let halves: &RecordBatch = &driven.output;
    assert_eq!(halves.column(1).as_primitive::<arrow::datatypes::Float64Type>().values()[1], 0.5);
}
