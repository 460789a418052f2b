//! Runs a step over a batch.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use rowmill_step::conformance::{Driven, Options, drive};
use rowmill_step::{Failure, StaticConnections, StepContext, StepExecutor as _};
use rowmill_step_http::{HttpOptions, HttpStep};
use serde_json::Value;

/// The canary; it is the credential of every connection made here.
pub(crate) const CANARY: &str = "c4nary/t0ken+for=tests";

/// A context with one connection, `api`, that authenticates with the canary.
pub(crate) fn context(mut connection: Value) -> StepContext {
    static FILE: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    let path = FILE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("rowmill-http-canary-{}", std::process::id()));
        std::fs::write(&path, CANARY).unwrap();
        path
    });
    if connection.get("auth").is_none() {
        connection["auth"] = serde_json::json!({"bearer": {"token": format!("file:{}", path.display())}});
    }
    let mut context = StepContext::new("run-1", "fetch", "tenant");
    context.connections = Arc::new(StaticConnections::default().with("api", connection));
    context
}

pub(crate) fn base(url: &str) -> Value {
    serde_json::json!({"base_url": url})
}

/// One text column `x`.
pub(crate) fn texts(values: &[Option<&str>]) -> RecordBatch {
    let column: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
    RecordBatch::try_from_iter_with_nullable([("x", column, true)]).unwrap()
}

pub(crate) async fn run(options: HttpOptions, context: &StepContext, input: RecordBatch) -> Driven {
    try_run(options, context, input).await.unwrap()
}

pub(crate) async fn try_run(
    options: HttpOptions,
    context: &StepContext,
    input: RecordBatch,
) -> Result<Driven, Failure> {
    let step = HttpStep::try_new(options).unwrap();
    // Like the engine: only the columns that the step reads, and in its order.
    let reads: Vec<usize> = step.describe().reads.iter().map(|name| input.schema().index_of(name).unwrap()).collect();
    let input = input.project(&reads).unwrap();
    let driven = drive(&step, context, &input.schema(), vec![input], &Options::default()).await?;
    assert_no_canary(&format!("{driven:?} {step:?} {context:?}"));
    Ok(driven)
}

/// The one failure of a run with one item.
pub(crate) async fn failure(options: HttpOptions, context: &StepContext) -> Failure {
    match try_run(options, context, texts(&[Some("1")])).await {
        Ok(driven) => driven.failures.into_iter().next().expect("the item fails").1,
        Err(failure) => failure,
    }
}

pub(crate) fn assert_no_canary(text: &str) {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(CANARY);
    for form in [CANARY, "c4nary", &encoded[..encoded.len() - 2], "c4nary%2Ft0ken%2Bfor%3Dtests"] {
        assert!(!text.contains(form), "the canary shows in: {text}");
    }
}
