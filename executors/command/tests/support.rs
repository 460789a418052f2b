//! Programs and a way to run a step over them.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use rowmill_step::conformance::{Driven, Options, drive};
use rowmill_step::{Effects, StepContext};
use rowmill_step_command::{CommandOptions, CommandStep};

/// A Python program that answers each item by `handle(item)`; `body` defines it.
pub(crate) fn python(body: &str) -> String {
    format!(
        r#"
import json, os, sys, time, signal
class Skip(Exception): pass
{body}
for line in sys.stdin:
    message = json.loads(line)
    try:
        answer = {{"id": message["id"], "ok": handle(message["item"])}}
    except Skip:
        answer = {{"id": message["id"], "skip": True}}
    except ValueError as error:
        answer = {{"id": message["id"], "error": str(error)}}
    print(json.dumps(answer), flush=True)
"#
    )
}

pub(crate) const DOUBLE: &str = r#"
def handle(item):
    n = item["n"]
    return {"doubled": None if n is None else n * 2}
"#;

pub(crate) fn output() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("doubled", DataType::Int64, true)]))
}

/// Options that run `program` with Python. `PATH` and `HOME` are passed on, which some installations of Python need.
pub(crate) fn options(program: &str) -> CommandOptions {
    let mut options = CommandOptions::new(&["python3", "-c", program], &["n"], output());
    options.pass_env = vec!["PATH".to_owned(), "HOME".to_owned()];
    options.effects = Effects::Idempotent;
    options.target.in_flight = 1;
    options
}

/// Options that run `script` with `sh`.
pub(crate) fn shell(script: &str) -> CommandOptions {
    CommandOptions { argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()], ..options("") }
}

pub(crate) fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter_with_nullable([("n", column, true)]).unwrap()
}

pub(crate) fn context() -> StepContext {
    StepContext::new("run-1", "score", "tenant")
}

pub(crate) async fn run(options: CommandOptions, input: RecordBatch) -> Driven {
    run_with(options, input, &Options::default()).await
}

pub(crate) async fn run_with(options: CommandOptions, input: RecordBatch, how: &Options) -> Driven {
    let step = CommandStep::try_new(options).unwrap();
    let (context, schema) = (context(), input.schema());
    let work = drive(&step, &context, &schema, vec![input], how);
    tokio::time::timeout(std::time::Duration::from_secs(60), work).await.expect("it ends").unwrap()
}

pub(crate) fn doubled(driven: &Driven) -> Vec<Option<i64>> {
    driven.output.column(0).as_primitive::<Int64Type>().iter().collect()
}
