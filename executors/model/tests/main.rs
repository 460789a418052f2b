//! The step through its public API, on a real ONNX Runtime: `ORT_DYLIB_PATH` says where it is (`pip install onnxruntime` brings
//! one). Where there is none the tests say so and pass, unless `MODEL_ONNX=required`.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    Array, ArrayRef, AsArray as _, Float16Array, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray,
};
use arrow::datatypes::{DataType, Float32Type, Int64Type, SchemaRef};
use async_trait::async_trait;
use rowmill_step::conformance::{Fault, Fixture, Options, check_all, drive};
use rowmill_step::{
    BatchReply, Failure, ItemBatch, Outcome, StepContext, StepDescription, StepExecutor, StepFactory as _, StepSession,
    StepShape,
};
use rowmill_step_model::{ModelDevice, ModelFactory, ModelOptions, ModelStep};

/// The library, or `None` where there is none.
fn library() -> Option<PathBuf> {
    let found = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    let required = std::env::var("MODEL_ONNX").is_ok_and(|value| value == "required");
    assert!(found.is_some() || !required, "MODEL_ONNX is `required`, and there is no ONNX Runtime");
    if found.is_none() {
        eprintln!(
            "not tested: no ONNX Runtime here; `pip install onnxruntime` brings one, ORT_DYLIB_PATH says where it is"
        );
    }
    found
}

fn model(name: &str, inputs: &[(&str, &[&str])], library: PathBuf) -> ModelOptions {
    let columns = |columns: &[&str]| columns.iter().map(|column| (*column).to_owned()).collect();
    ModelOptions {
        file: Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.onnx")),
        inputs: inputs.iter().map(|(tensor, names)| ((*tensor).to_owned(), columns(names))).collect(),
        output: None,
        device: ModelDevice::Cpu,
        library: Some(library),
        target: ModelStep::TARGET,
    }
}

fn linear(library: PathBuf) -> ModelOptions {
    model("linear", &[("x", &["p", "q", "r"]), ("b", &["n"])], library)
}

/// Columns of several types for the linear model.
fn rows(numbers: Range<u64>) -> RecordBatch {
    let values: Vec<u64> = numbers.collect();
    let p: ArrayRef = Arc::new(Int32Array::from_iter_values(values.iter().map(|n| *n as i32)));
    let q: ArrayRef = Arc::new(Float64Array::from_iter_values(values.iter().map(|n| *n as f64 / 2.0)));
    let r: ArrayRef = Arc::new(Float32Array::from_iter_values(values.iter().map(|_| 1.0)));
    let n: ArrayRef = Arc::new(Int64Array::from_iter_values(values.iter().map(|n| *n as i64)));
    RecordBatch::try_from_iter_with_nullable([("p", p, true), ("q", q, true), ("r", r, true), ("n", n, true)]).unwrap()
}

struct Scoring {
    library: PathBuf,
    seen: Arc<AtomicU64>,
}

/// Counts what reaches the sessions.
#[derive(Debug)]
struct Counted(ModelStep, Arc<AtomicU64>);
struct CountedSession(Box<dyn StepSession>, Arc<AtomicU64>);

#[async_trait]
impl StepExecutor for Counted {
    fn describe(&self) -> &StepDescription {
        self.0.describe()
    }
    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        self.0.output_schema(input, context).await
    }
    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        Ok(Box::new(CountedSession(self.0.open(context, shape).await?, Arc::clone(&self.1))))
    }
}

#[async_trait]
impl StepSession for CountedSession {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        self.1.fetch_add(batch.rows() as u64, Ordering::Relaxed);
        self.0.execute(batch).await
    }
}

#[async_trait]
impl Fixture for Scoring {
    fn context(&self) -> StepContext {
        StepContext::new("run", "score", "tenant")
    }

    async fn executor(&self) -> Arc<dyn StepExecutor> {
        let options = ModelOptions { output: Some(vec![("score".into(), "y".into())]), ..linear(self.library.clone()) };
        Arc::new(Counted(ModelStep::new(options), Arc::clone(&self.seen)))
    }

    fn input(&self, numbers: Range<u64>) -> RecordBatch {
        rows(numbers)
    }

    /// An item with a null fails.
    fn input_with_nulls(&self, _numbers: Range<u64>) -> Option<RecordBatch> {
        None
    }

    fn expected(&self, input: &RecordBatch) -> RecordBatch {
        let numbers = input.column(3).as_primitive::<Int64Type>();
        let scores = numbers.values().iter().map(|n| *n as f32 + *n as f32 * 5.0 + 100.0 + *n as f32);
        let scores: ArrayRef = Arc::new(Float32Array::from_iter_values(scores));
        RecordBatch::try_from_iter_with_nullable([("score", scores, true)]).unwrap()
    }

    fn items_seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// A model has no other side.
    fn inject(&self, fault: Fault) -> bool {
        matches!(fault, Fault::None)
    }

    fn fired(&self) -> u64 {
        0
    }
}

#[tokio::test]
async fn the_suite_is_passed() {
    let Some(library) = library() else { return };
    let fixture = Scoring { library, seen: Arc::default() };
    assert_eq!(check_all(&fixture).await, ["nulls", "poisoned_row", "crash", "retry", "cancel_in_the_middle"]);
}

async fn run(options: ModelOptions, input: &RecordBatch) -> rowmill_step::conformance::Driven {
    let context = StepContext::new("run", "score", "tenant");
    drive(&ModelStep::new(options), &context, &input.schema(), vec![input.clone()], &Options::default()).await.unwrap()
}

#[tokio::test]
async fn all_outputs_come_by_their_names_and_nulls_fail_alone() {
    let Some(library) = library() else { return };
    let mut columns = rows(0..4).columns().to_vec();
    columns[1] = Arc::new(Float64Array::from(vec![Some(0.0), None, Some(1.0), Some(1.5)]));
    let input = RecordBatch::try_new(rows(0..1).schema(), columns).unwrap();
    let driven = run(linear(library), &input).await;
    assert_eq!(driven.outcomes.get(Outcome::Ok), 3);
    assert_eq!(driven.failures.len(), 1);
    assert!(driven.failures[0].1.message().contains("column `q` is null"), "{:?}", driven.failures);
    let schema = driven.output.schema();
    assert_eq!(schema.field(0).name(), "y");
    assert_eq!(driven.output.column(0).as_primitive::<Float32Type>().values(), &[100.0, 114.0, 121.0]);
    let DataType::List(_) = schema.field(1).data_type() else { panic!("{schema}") };
    let doubled = driven.output.column(1).as_list::<i32>().value(1);
    assert_eq!(doubled.as_primitive::<Float32Type>().values(), &[4.0, 2.0, 2.0]);
}

/// Seven items through a model that takes four: the last ones are padded, and nobody sees it.
#[tokio::test]
async fn a_model_of_fixed_size_takes_any_number_of_items() {
    let Some(library) = library() else { return };
    let input = rows(0..7);
    let driven = run(model("fixed", &[("x", &["p", "q"])], library), &input).await;
    let lists = driven.output.column(0).as_list::<i32>();
    assert_eq!(lists.len(), 7);
    for row in 0..7 {
        let values = lists.value(row);
        assert_eq!(values.as_primitive::<Float32Type>().values(), &[row as f32 + 1.0, row as f32 / 2.0 + 1.0]);
    }
}

/// Numbers of 16 bits come and go as `Float32`; what is too large for them fails alone and is not an infinity.
#[tokio::test]
async fn numbers_of_16_bits() {
    let Some(library) = library() else { return };
    let p: ArrayRef = Arc::new(Float64Array::from(vec![0.5, 1e6, -2.0, f64::INFINITY]));
    let q: ArrayRef = Arc::new(Float16Array::from_iter_values([1.5, 2.5, 3.5, 4.5].map(half::f16::from_f32)));
    let c: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3, 256]));
    let input = RecordBatch::try_from_iter_with_nullable([("p", p, true), ("q", q, true), ("c", c, true)]).unwrap();
    let driven = run(model("half", &[("x", &["p", "q"]), ("c", &["c"])], library), &input).await;
    assert_eq!(driven.failures.len(), 1, "{:?}", driven.failures);
    assert!(driven.failures[0].1.message().contains("1000000 is too large"), "{:?}", driven.failures);
    let rows = driven.output.column(0).as_list::<i32>();
    let row = |row: usize| rows.value(row).as_primitive::<Float32Type>().values().to_vec();
    assert_eq!((row(0), row(1), row(2)), (vec![1.5, 2.5], vec![-1.0, 4.5], vec![f32::INFINITY, 5.5]));
    assert_eq!(driven.output.column(1).as_primitive::<Float32Type>().values(), &[1.0, 3.0, 256.0]);
}

#[tokio::test]
async fn doubles_beyond_a_models_floats_fail_alone() {
    let Some(library) = library() else { return };
    let p: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 1e300, f64::NEG_INFINITY]));
    let input = RecordBatch::try_from_iter_with_nullable([("p", Arc::clone(&p), true), ("q", p, true)]).unwrap();
    let driven = run(model("fixed", &[("x", &["p", "q"])], library), &input).await;
    assert_eq!((driven.output.num_rows(), driven.failures.len()), (2, 1), "{:?}", driven.failures);
    assert!(driven.failures[0].1.message().contains("too large for the model's numbers"), "{:?}", driven.failures);
}

#[tokio::test]
async fn texts_come_and_go() {
    let Some(library) = library() else { return };
    let s: ArrayRef = Arc::new(StringArray::from(vec![Some("yes"), Some("no"), None, Some("ähm"), Some("")]));
    for data_type in [DataType::Utf8, DataType::Utf8View, DataType::LargeUtf8] {
        let s = arrow::compute::cast(&s, &data_type).unwrap();
        let input = RecordBatch::try_from_iter_with_nullable([("s", s, true)]).unwrap();
        let driven = run(model("texts", &[("s", &["s"])], library.clone()), &input).await;
        assert_eq!(driven.failures.len(), 1, "{:?}", driven.failures);
        assert_eq!(driven.output.column(0).as_primitive::<Float32Type>().values(), &[1.0, 0.0, -1.0, -1.0]);
        let texts: Vec<&str> = driven.output.column(1).as_string::<i32>().iter().flatten().collect();
        assert_eq!(texts, ["yes", "no", "ähm", ""]);
    }
}

/// A file that is there and no model.
#[tokio::test]
async fn a_file_that_is_no_model_is_named() {
    let Some(library) = library() else { return };
    let folder = tempfile::tempdir().unwrap();
    let context = StepContext::new("run", "score", "tenant");
    for content in [&b""[..], b"rowmill: 1", &std::fs::read(linear(library.clone()).file).unwrap()[..60]] {
        let file = folder.path().join("broken.onnx");
        std::fs::write(&file, content).unwrap();
        let step = ModelStep::new(ModelOptions { file, ..linear(library.clone()) });
        let failure = step.output_schema(&rows(0..1).schema(), &context).await.unwrap_err();
        assert!(failure.message().contains("broken.onnx cannot be used"), "{}", failure.message());
    }
}

#[tokio::test]
async fn an_item_that_the_model_refuses_is_found() {
    let Some(library) = library() else { return };
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values((0..40).map(|n| if n == 23 { 99 } else { n % 3 })));
    let input = RecordBatch::try_from_iter_with_nullable([("i", numbers, true)]).unwrap();
    let driven = run(model("gather", &[("i", &["i"])], library), &input).await;
    assert_eq!((driven.outcomes.get(Outcome::Ok), driven.failures.len()), (39, 1), "{:?}", driven.failures);
    assert_eq!(driven.output.column(0).as_primitive::<Float32Type>().values()[..4], [0.5, 1.5, 2.5, 0.5]);
}

#[tokio::test]
async fn what_is_wrong_is_told_while_compiling() {
    let Some(library) = library() else { return };
    let context = StepContext::new("run", "score", "tenant");
    let input = rows(0..1).schema();
    let words: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let text = RecordBatch::try_from_iter([("i", words)]).unwrap().schema();
    let gone = ModelOptions { file: "gone.onnx".into(), ..linear(library.clone()) };
    let output = |tensor: &str| Some(vec![("score".to_owned(), tensor.to_owned())]);
    for (options, input, words) in [
        (gone, &input, "gone.onnx"),
        (model("linear", &[("x", &["p", "q", "r"])], library.clone()), &input, "input `b` gets no columns"),
        (
            model("gather", &[("i", &["n"]), ("j", &["n"])], library.clone()),
            &input,
            "there is no input `j`; there are i",
        ),
        (model("linear", &[("x", &["p"]), ("b", &["n"])], library.clone()), &input, "takes 3 numbers for an item"),
        (model("gather", &[("i", &["i"])], library.clone()), &text, "column `i` is Utf8"),
        (
            model("gather", &[("i", &["q"])], library.clone()),
            &input,
            "column `q` is Float64, and input `i` takes Int64",
        ),
        (
            ModelOptions { output: output("yy"), ..linear(library.clone()) },
            &input,
            "there is no output `yy`; there are y, z",
        ),
        (ModelOptions { device: ModelDevice::Cuda, ..linear(library.clone()) }, &input, "`device: cuda` needs"),
    ] {
        let step = ModelStep::new(options);
        let reads = &step.describe().reads;
        let places: Vec<usize> = reads.iter().map(|read| input.index_of(read).unwrap()).collect();
        let input: SchemaRef = Arc::new(input.project(&places).unwrap());
        let failure = step.output_schema(&input, &context).await.unwrap_err();
        assert!(failure.message().contains(words), "{words}: {}", failure.message());
    }
    // Where there is a GPU it would be taken; here the CPU is.
    let auto = ModelOptions { device: ModelDevice::Auto, ..linear(library) };
    let step = ModelStep::new(auto);
    assert_eq!(step.output_schema(&input, &context).await.unwrap().fields().len(), 2);
}

/// The library is asked for once in a process, so this runs in a process of its own.
#[test]
fn a_library_that_is_not_there_is_an_error() {
    if std::env::var("TEST_NO_ONNX").is_err() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_library_that_is_not_there_is_an_error"])
            .env("TEST_NO_ONNX", "1")
            .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = ModelOptions { library: None, ..linear(PathBuf::new()) };
        let context = StepContext::new("run", "score", "tenant");
        let failure = ModelStep::new(options).output_schema(&rows(0..1).schema(), &context).await.unwrap_err();
        assert!(failure.message().contains("ONNX Runtime cannot be loaded"), "{}", failure.message());
        assert!(failure.message().contains("model.library"), "{}", failure.message());
    });
}

#[test]
fn the_text_becomes_options() {
    let build = |model: &str, rest: &str| {
        let text = format!("rowmill: 1\nname: f\nsteps:\n  s:\n    model: {{from: t, {model}}}\n{rest}");
        let workflow = rowmill_spec::parse_yaml("t.yaml", &text).unwrap_or_else(|reports| panic!("{reports}"));
        let fill = |template: &rowmill_spec::Template| Ok(template.fill(|_| None).unwrap());
        ModelFactory::default().build_in(&workflow.steps["s"], &fill, Path::new("/flows"))
    };
    let step = build("file: m.onnx, inputs: {x: [a, b], y: a}, output: {s: z}, device: auto", "    batch: {rows: 7}\n");
    let step = step.unwrap();
    let description = step.describe();
    assert_eq!(description.summary, "/flows/m.onnx on auto");
    assert_eq!((description.target.rows, description.reads.as_slice()), (7, &["a".to_owned(), "b".to_owned()][..]));
    for (model, rest, words) in [
        ("file: '', inputs: {x: a}", "", "`file`"),
        ("file: m, inputs: {}", "", "`inputs`"),
        ("file: m, inputs: {x: a}", "    effects: once\n", "`effects`"),
    ] {
        let reports = build(model, rest).unwrap_err();
        assert!(reports[0].message.contains(words), "{reports:?}");
    }
}
