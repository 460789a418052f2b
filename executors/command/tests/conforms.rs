//! The conformance suite, for both formats. The other side is a program, so it counts and hears of faults by files.

use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use rowmill_step::conformance::{Fault, Fixture, check_all};
use rowmill_step::{Effects, StepContext, StepExecutor};
use rowmill_step_command::{CommandOptions, CommandStep};

use crate::support::{context, numbers, options, python};

/// Counts by appending a byte to a file: an append of one byte is never lost, whoever dies.
const PROGRAM: &str = r#"
def note(name):
    with open(os.path.join(sys.argv[1], name), "ab", buffering=0) as file: file.write(b".")
def handle(item):
    note("items")
    n = item["n"]
    try:
        with open(os.path.join(sys.argv[1], "fault")) as file: kind, at = file.read().split()
    except (FileNotFoundError, ValueError): kind, at = "none", "0"
    if kind == "poison" and n == int(at): note("fired"); raise ValueError("poisoned")
    if kind == "crash" and n == int(at): note("fired"); os._exit(9)
    if kind == "stall": note("fired"); time.sleep(600)
    return {"doubled": None if n is None else n * 2}
"#;

struct Doubling {
    directory: tempfile::TempDir,
    effects: Effects,
}

impl Doubling {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
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
        let mut options = CommandOptions { effects: self.effects, ..options(&python(PROGRAM)) };
        options.argv.push(self.directory.path().to_string_lossy().into_owned());
        options.target.in_flight = 2;
        Arc::new(CommandStep::try_new(options).unwrap())
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
            // A program that answers has answered: there is no call that is safe to repeat.
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
async fn json_lines() {
    for effects in [Effects::Idempotent, Effects::Once] {
        let fixture = Doubling { directory: tempfile::tempdir().unwrap(), effects };
        assert_eq!(check_all(&fixture).await, ["retry"]);
    }
}
