//! The step through its public API: the conformance suite, and a search against a plain one.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, AsArray as _, Float32Builder, ListBuilder, RecordBatch, StringArray};
use arrow::datatypes::{Float32Type, Int32Type, Int64Type, SchemaRef};
use async_trait::async_trait;
use rowmill_gpu::ops::top_k::Metric;
use rowmill_step::conformance::{Fault, Fixture, Options, check_all, drive};
use rowmill_step::{
    BatchReply, Failure, ItemBatch, Outcome, StepContext, StepDescription, StepExecutor, StepFactory as _, StepSession,
    StepShape,
};
use rowmill_step_gpu::{GpuFactory, TopKOptions, TopKStep};

/// Row `n` of the corpus, and the query that finds it.
fn vector(n: u64) -> [f32; 3] {
    let angle = (n % 97) as f32 * 0.06;
    [angle.cos(), angle.sin(), 0.5]
}

fn lists(rows: impl Iterator<Item = Option<Vec<f32>>>) -> ArrayRef {
    let mut builder = ListBuilder::new(Float32Builder::new());
    for row in rows {
        match row {
            Some(values) => {
                builder.values().append_slice(&values);
                builder.append(true);
            }
            None => builder.append(false),
        }
    }
    Arc::new(builder.finish())
}

fn corpus(folder: &Path) -> PathBuf {
    let path = folder.join("corpus.parquet");
    let names: ArrayRef = Arc::new(StringArray::from_iter_values((0..97).map(|n| format!("row {n}"))));
    let vectors = lists((0..97).map(|n| Some(vector(n).to_vec())));
    // The wanted columns are not the first, and not in the order in which they are asked for.
    let batch = RecordBatch::try_from_iter([("other", names.clone()), ("name", names), ("v", vectors)]).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

fn options(corpus: PathBuf, k: usize) -> TopKOptions {
    TopKOptions {
        column: "v".into(),
        corpus,
        corpus_column: "v".into(),
        id: Some("name".into()),
        k,
        metric: Metric::Cosine,
        target: TopKStep::TARGET,
    }
}

fn step(options: TopKOptions) -> TopKStep {
    TopKStep::new(options, Arc::new(|_, _| None))
}

struct Searching {
    folder: tempfile::TempDir,
    seen: Arc<AtomicU64>,
}

/// Counts what reaches the sessions.
#[derive(Debug)]
struct Counted(TopKStep, Arc<AtomicU64>);
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
impl Fixture for Searching {
    fn context(&self) -> StepContext {
        StepContext::new("run", "alike", "tenant")
    }

    async fn executor(&self) -> Arc<dyn StepExecutor> {
        let options = options(self.folder.path().join("corpus.parquet"), 1);
        Arc::new(Counted(step(options), Arc::clone(&self.seen)))
    }

    fn input(&self, rows: Range<u64>) -> RecordBatch {
        let vectors = lists(rows.map(|n| Some(vector(n).to_vec())));
        RecordBatch::try_from_iter_with_nullable([("v", vectors, true)]).unwrap()
    }

    /// A query that is null finds nothing, so it has no row to be expected.
    fn input_with_nulls(&self, _rows: Range<u64>) -> Option<RecordBatch> {
        None
    }

    fn expected(&self, input: &RecordBatch) -> RecordBatch {
        let lists = input.column(0).as_list::<i32>();
        let near = |row: usize| {
            let query = lists.value(row);
            let query = query.as_primitive::<Float32Type>();
            (0..97).find(|n| vector(*n) == query.values()[..]).unwrap()
        };
        let names: ArrayRef =
            Arc::new(StringArray::from_iter_values((0..lists.len()).map(|row| format!("row {}", near(row)))));
        let scores: ArrayRef = Arc::new(arrow::array::Float32Array::from(vec![1.0; lists.len()]));
        let ranks: ArrayRef = Arc::new(arrow::array::Int32Array::from(vec![1; lists.len()]));
        RecordBatch::try_from_iter_with_nullable([
            ("neighbour", names, true),
            ("score", scores, true),
            ("rank", ranks, true),
        ])
        .unwrap()
    }

    fn items_seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Nothing is on another side.
    fn inject(&self, fault: Fault) -> bool {
        matches!(fault, Fault::None)
    }

    fn fired(&self) -> u64 {
        0
    }
}

async fn run(step: TopKStep, input: &RecordBatch) -> rowmill_step::conformance::Driven {
    let context = StepContext::new("run", "alike", "tenant");
    drive(&step, &context, &input.schema(), vec![input.clone()], &Options::default()).await.unwrap()
}

#[tokio::test]
async fn the_suite_is_passed() {
    let folder = tempfile::tempdir().unwrap();
    corpus(folder.path());
    let fixture = Searching { folder, seen: Arc::default() };
    assert_eq!(check_all(&fixture).await, ["nulls", "poisoned_row", "crash", "retry", "cancel_in_the_middle"]);
}

#[tokio::test]
async fn the_best_come_first_and_wrong_items_fail_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = corpus(folder.path());
    let queries = [Some(vector(10).to_vec()), None, Some(vec![1.0, 2.0]), Some(vec![0.0; 3]), Some(vector(0).to_vec())];
    let input = RecordBatch::try_from_iter_with_nullable([("v", lists(queries.into_iter()), true)]).unwrap();
    for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
        let mut options = options(path.clone(), 3);
        options.metric = metric;
        let driven = run(step(options), &input).await;
        let found = driven.output;
        let names: Vec<&str> = found.column(0).as_string::<i32>().iter().map(Option::unwrap).collect();
        let ranks = found.column(2).as_primitive::<Int32Type>().values();
        assert_eq!(names[0], "row 10", "{metric:?}");
        assert!(names[1..3].contains(&"row 9") && names[1..3].contains(&"row 11"), "{metric:?} {names:?}");
        assert_eq!(&ranks[..3], [1, 2, 3]);
        assert_eq!(driven.outcomes.get(Outcome::Ok), 4, "{metric:?}");
        assert_eq!(driven.failures.len(), 1);
        assert!(driven.failures[0].1.message().contains("2 numbers among those of 3"), "{:?}", driven.failures);
        // Zeros have no direction; by the other metrics they are as near as any.
        assert_eq!(found.num_rows(), if metric == Metric::Cosine { 6 } else { 9 });
    }
    let mut numbered = options(path, 2);
    numbered.id = None;
    let driven = run(step(numbered), &input).await;
    assert_eq!(driven.output.column(0).as_primitive::<Int64Type>().value(0), 10);
}

#[tokio::test]
async fn what_is_wrong_is_told_while_compiling() {
    let folder = tempfile::tempdir().unwrap();
    let path = corpus(folder.path());
    let context = StepContext::new("run", "alike", "tenant");
    let input = RecordBatch::try_from_iter([("v", lists([Some(vec![1.0])].into_iter()))]).unwrap().schema();
    let text: SchemaRef =
        RecordBatch::try_from_iter([("v", Arc::new(StringArray::from(vec!["a"])) as ArrayRef)]).unwrap().schema();
    let garbage = folder.path().join("garbage.parquet");
    std::fs::write(&garbage, "no corpus, but long enough").unwrap();
    let with = |change: &dyn Fn(&mut TopKOptions)| {
        let mut options = options(path.clone(), 1);
        change(&mut options);
        step(options)
    };
    for (step, input, words) in [
        (with(&|_| {}), &text, "not a list of numbers"),
        (with(&|o| o.corpus = folder.path().join("gone")), &input, "cannot read the corpus"),
        (with(&|o| o.corpus.clone_from(&garbage)), &input, "cannot read the corpus"),
        (with(&|o| o.corpus_column = "vv".into()), &input, "has no column `vv`; it has other, name, v"),
        (with(&|o| o.corpus_column = "name".into()), &input, "not a list of numbers"),
        (with(&|o| o.id = Some("x".into())), &input, "has no column `x`"),
    ] {
        let failure = step.output_schema(input, &context).await.unwrap_err();
        assert!(failure.message().contains(words), "{words}: {}", failure.message());
    }
}

#[test]
fn the_text_becomes_options() {
    let text = |top_k: &str, rest: &str| {
        format!("rowmill: 1\nname: f\nsteps:\n  s:\n    gpu: {{from: t, top_k: {{{top_k}}}}}\n{rest}")
    };
    let build = |text: &str| {
        let workflow = rowmill_spec::parse_yaml("t.yaml", text).unwrap_or_else(|reports| panic!("{reports}"));
        let fill = |template: &rowmill_spec::Template| Ok(template.fill(|_| None).unwrap());
        GpuFactory::on_cpu().build_in(&workflow.steps["s"], &fill, Path::new("/flows"))
    };
    let step = build(&text("column: v, corpus: a/c.parquet, k: 5", "    batch: {rows: 7}\n")).unwrap();
    let description = step.describe();
    assert_eq!(description.summary, "the 5 rows of /flows/a/c.parquet most like `v`");
    assert_eq!((description.target.rows, description.reads.as_slice()), (7, &["v".to_owned()][..]));
    for (top_k, rest, words) in [
        ("column: v, corpus: '', k: 5", "", "`corpus`"),
        ("column: v, corpus: c, k: 9999999", "", "`k`"),
        ("column: v, corpus: c, k: 9", "    effects: once\n", "`effects`"),
    ] {
        let reports = build(&text(top_k, rest)).unwrap_err();
        assert!(reports[0].message.contains(words), "{reports:?}");
        assert!(!reports[0].labels.is_empty());
    }
}
