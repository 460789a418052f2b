//! The conformance suite. The other side is a process, so it counts and hears of faults by files.

use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use rowmill_step::conformance::{Fault, Fixture, check_all};
use rowmill_step::{Effects, StepContext, StepExecutor};
use rowmill_step_python::PythonStep;

use crate::support::{context, interpreter, module, numbers, options};

/// Counts by appending a byte to a file: an append of one byte is never lost, whoever dies.
const MODULE: &str = r#"
import os, time
here = os.path.dirname(__file__)
def note(name):
    with open(os.path.join(here, name), "ab", buffering=0) as file: file.write(b".")
def double(n):
    note("items")
    try:
        with open(os.path.join(here, "fault")) as file: kind, at = file.read().split()
    except (FileNotFoundError, ValueError): kind, at = "none", "0"
    if kind == "poison" and n == int(at): note("fired"); raise ValueError("poisoned")
    if kind == "crash" and n == int(at): note("fired"); os._exit(9)
    if kind == "stall": note("fired"); time.sleep(600)
    return None if n is None else n * 2
"#;

struct Doubling {
    python: String,
    folder: tempfile::TempDir,
    effects: Effects,
}

impl Doubling {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn count(&self, name: &str) -> u64 {
        std::fs::metadata(self.path(name)).map_or(0, |meta| meta.len())
    }
}

#[async_trait]
impl Fixture for Doubling {
    fn context(&self) -> StepContext {
        context()
    }

    async fn executor(&self) -> Arc<dyn StepExecutor> {
        let mut options = options(&self.python, self.folder.path(), "double");
        options.effects = self.effects;
        options.target.in_flight = 2;
        Arc::new(PythonStep::try_new(options).unwrap())
    }

    fn input(&self, rows: Range<u64>) -> RecordBatch {
        numbers(rows.map(|n| n as i64))
    }

    fn input_with_nulls(&self, rows: Range<u64>) -> Option<RecordBatch> {
        let column: ArrayRef = Arc::new(rows.map(|n| (n % 3 != 1).then_some(n as i64)).collect::<Int64Array>());
        Some(RecordBatch::try_from_iter_with_nullable([("n", column, true)]).unwrap())
    }

    fn expected(&self, input: &RecordBatch) -> RecordBatch {
        let numbers = input.column(0).as_primitive::<Int64Type>();
        let column: ArrayRef = Arc::new(numbers.iter().map(|n| n.map(|n| n * 2)).collect::<Int64Array>());
        RecordBatch::try_from_iter_with_nullable([("doubled", column, true)]).unwrap()
    }

    fn items_seen(&self) -> u64 {
        self.count("items")
    }

    fn inject(&self, fault: Fault) -> bool {
        let text = match fault {
            Fault::None => "none 0".to_owned(),
            Fault::Poison(row) => format!("poison {row}"),
            Fault::Crash(row) => format!("crash {row}"),
            Fault::Stall => "stall 0".to_owned(),
            // A function that raised has run: there is no call that is safe to repeat.
            Fault::Transient(_) => return false,
        };
        let mut file = std::fs::File::create(self.path("new")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::fs::rename(self.path("new"), self.path("fault")).unwrap();
        true
    }

    fn fired(&self) -> u64 {
        self.count("fired")
    }
}

#[tokio::test]
async fn worker_processes() {
    let Some(python) = interpreter() else { return };
    for effects in [Effects::Pure, Effects::Once] {
        let fixture = Doubling { python: python.clone(), folder: module(MODULE), effects };
        assert_eq!(check_all(&fixture).await, ["retry"]);
    }
}
