//! Columns in memory that a worker shares with this process: what lies there is never written while somebody looks.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use rowmill_step::{
    Effects, Failure, FailureCode, ItemBatch, ItemIds, ItemKeys, KeyDeriver, Outcome, StepExecutor, StepSession,
    StepShape,
};
use rowmill_step_python::{Kind, PythonOptions, PythonStep};

use crate::support::{context, doubled, interpreter, module, numbers, options, run};

/// Rows of a group that is worth a segment.
const ROWS: i64 = 100_000;

const MODULE: &str = r#"
import os, signal
import pyarrow as pa, pyarrow.compute as pc

def double(n: pa.Array):
    return pc.multiply(n, 2)

def is_shared(n: pa.Array):
    lies = n.buffers()[1].address
    for line in open("/proc/self/maps"):
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= lies < int(end, 16):
            return pa.array([1 if "rowmill-to-worker" in line else 0] * len(n))

def is_read_only(n: pa.Array):
    return pa.array([0 if n.buffers()[1].is_mutable else 1] * len(n))

kept = []
def keeper(n: pa.Array):
    # Each argument that it was ever given is still what it was.
    kept.append((n, n[0].as_py()))
    right = all(array[0].as_py() == first and array[len(array) - 1].as_py() == first + len(array) - 1 for array, first in kept)
    return pa.array([1 if right else 0] * len(n))

calls = 0
def killed_in_writing(n: pa.Array):
    # The second answer is cut off in the middle of its segment.
    global calls
    calls += 1
    if calls == 2:
        write = os.pwrite
        def half(file, data, at):
            write(file, memoryview(data)[: len(data) // 2], at)
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite = half
    return pc.multiply(n, 2)

def no_room(n: pa.Array):
    def full(*_):
        raise OSError(28, "No space left on device")
    os.pwrite = full
    return pc.multiply(n, 2)

def lies(n: pa.Array):
    import sys
    shared = next(of for of in map(sys.modules.get, ("rowmill_shared", "rowmill._shared")) if of).Shared
    shared.put = lambda self, batch, held: [1 << 40, 1 << 20, 1 << 20]
    return n

def upper(s: pa.Array):
    return pc.utf8_upper(s)
"#;

fn batches(python: &str, folder: &Path, function: &str) -> PythonOptions {
    let mut options = options(python, folder, function);
    options.kind = Some(Kind::Batch);
    options.target.rows = ROWS as usize;
    options
}

async fn session(options: PythonOptions, input: &RecordBatch) -> Box<dyn StepSession> {
    let output = Arc::clone(&options.output);
    let step = PythonStep::try_new(options).unwrap();
    step.open(&context(), &StepShape { input: input.schema(), output }).await.unwrap()
}

fn group(columns: RecordBatch) -> ItemBatch {
    let ids = ItemIds::Range { file: 0, rows: 0..columns.num_rows() as u64 };
    let keys = ItemKeys::new(ids, Arc::new(KeyDeriver::new("run-1", "score")));
    ItemBatch {
        columns,
        keys,
        attempt: 1,
        deadline: None,
        stop: context().cancel,
        cancel: context().cancel,
        place: None,
    }
}

#[tokio::test]
async fn large_groups_lie_in_shared_memory_and_cannot_be_written() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    for function in ["is_shared", "is_read_only"] {
        let driven = run(batches(&python, folder.path(), function), numbers(0..ROWS)).await;
        assert_eq!(doubled(&driven), vec![Some(1); ROWS as usize], "{function}");
    }
    let mut small = batches(&python, folder.path(), "is_shared");
    small.target.rows = 100;
    assert_eq!(doubled(&run(small, numbers(0..100)).await), vec![Some(0); 100]);
    let mut piped = batches(&python, folder.path(), "is_shared");
    piped.shared_memory = false;
    assert_eq!(doubled(&run(piped, numbers(0..ROWS)).await), vec![Some(0); ROWS as usize]);
}

#[tokio::test]
async fn both_ways_give_the_same() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let words: StringArray = (0..ROWS).map(|n| if n % 7 == 0 { None } else { Some(format!("wörd {n}")) }).collect();
    let spare: ArrayRef = Arc::new(BooleanArray::from(vec![true; ROWS as usize]));
    let words =
        RecordBatch::try_from_iter_with_nullable([("s", Arc::new(words) as ArrayRef, true), ("b", spare, true)]);
    // Not from its first row on: what is sent is the part, whose offsets do not begin with zero.
    let words = words.unwrap().project(&[0]).unwrap().slice(5, ROWS as usize - 10);
    let mut answers = Vec::new();
    for shared in [true, false] {
        let mut options = batches(&python, folder.path(), "upper");
        options.reads = vec!["s".to_owned()];
        options.output = Arc::new(Schema::new(vec![Field::new("u", DataType::Utf8, true)]));
        options.shared_memory = shared;
        answers.push(run(options, words.clone()).await.output);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].column(0).as_string::<i32>().value(1), "WÖRD 6");
}

#[tokio::test]
async fn what_a_function_keeps_stays_as_it_is() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    // More groups than there are segments: the rest goes through the pipe.
    let driven = run(batches(&python, folder.path(), "keeper"), numbers(0..ROWS * 20)).await;
    assert!(doubled(&driven).iter().all(|right| *right == Some(1)));
}

#[tokio::test]
async fn answers_that_are_kept_stay_as_they_are() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let mut session = session(batches(&python, folder.path(), "double"), &numbers(0..1)).await;
    let mut kept = Vec::new();
    for round in 0..20 {
        let start = round * ROWS;
        let reply = session.execute(group(numbers(start..start + ROWS))).await.unwrap();
        kept.push((start, reply.output));
        if round % 3 == 0 {
            kept.remove(0);
        }
    }
    session.close().await.unwrap();
    for (start, output) in kept {
        let wanted: Vec<i64> = (start..start + ROWS).map(|n| n * 2).collect();
        assert_eq!(output.column(0).as_primitive::<Int64Type>().values(), wanted.as_slice());
    }
}

#[tokio::test]
async fn a_worker_that_dies_while_it_writes_breaks_nothing() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let mut options = batches(&python, folder.path(), "killed_in_writing");
    options.effects = Effects::Once;
    let mut session = session(options, &numbers(0..1)).await;
    let first = session.execute(group(numbers(0..ROWS))).await.unwrap().output;
    let failure: Failure = session.execute(group(numbers(ROWS..2 * ROWS))).await.unwrap_err();
    assert_eq!(failure.code(), FailureCode::Crashed);
    assert!(failure.message().contains("signal 9"), "{failure}");
    // Another process takes its place, and what the first one wrote before is untouched.
    let third = session.execute(group(numbers(0..ROWS))).await.unwrap().output;
    assert_eq!(first, third);
    session.close().await.unwrap();
    // The files have no name, so that nothing is left of them.
    let left = std::fs::read_dir("/dev/shm")
        .map(|files| files.flatten().filter(|file| file.file_name().to_string_lossy().contains("-worker")).count());
    assert_eq!(left.unwrap_or(0), 0);
}

#[tokio::test]
async fn where_no_memory_is_left_the_pipe_is_the_way() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let mut options = batches(&python, folder.path(), "no_room");
    let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = told.clone();
    options.printed = rowmill_step_python::Output(Arc::new(move |text| seen.lock().extend_from_slice(text)));
    let driven = run(options, numbers(0..ROWS * 2)).await;
    assert_eq!(doubled(&driven), (0..ROWS * 2).map(|n| Some(n * 2)).collect::<Vec<_>>());
    // Told once in a process, whichever test comes first.
    let told = String::from_utf8_lossy(&told.lock()).into_owned();
    assert!(told.is_empty() || told.contains("columns go through pipes"), "{told}");
}

#[tokio::test]
async fn an_answer_that_lies_nowhere_is_nonsense() {
    let Some(python) = interpreter() else { return };
    let folder = module(MODULE);
    let mut options = batches(&python, folder.path(), "lies");
    options.effects = Effects::Once;
    let driven = run(options, numbers(0..ROWS)).await;
    assert_eq!(driven.outcomes.get(Outcome::Ok), 0);
    assert!(driven.failures[0].1.message().contains("its answer lies at"), "{}", driven.failures[0].1);
}
