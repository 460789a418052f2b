//! Workflows built in Rust, with tables that the program provides.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::datasource::MemTable;
use rowmill::spec::{LogicalType, ResourceClass, Resources, Value};
use rowmill::{Inputs, RunError, Session, SessionOptions, Workflow};

fn orders() -> Arc<MemTable> {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from(vec![Some(1), Some(2), None, Some(4)]))),
        ("customer", Arc::new(StringArray::from(vec!["ada", "grace", "ada", "edsger"]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap())
}

fn inputs(collect: &str) -> Inputs {
    Inputs {
        tables: [("orders".to_owned(), orders() as _)].into(),
        collect: vec![collect.to_owned()],
        ..Inputs::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_in_and_come_out() {
    let session = Session::try_new(SessionOptions::default()).unwrap();
    let workflow = Workflow::builder("built")
        .param("least", LogicalType::Int64, Some(Value::Int(LogicalType::Int64, 2)))
        .source_provided("orders")
        .sql("kept", "SELECT * FROM orders WHERE id >= $least")
        .sql_with(
            "counted",
            "SELECT customer, count(*) AS n FROM kept GROUP BY customer ORDER BY customer",
            Resources::class(ResourceClass::Memory),
        )
        .build()
        .unwrap();
    let workflow = Arc::new(workflow);
    let report = session.run(Arc::clone(&workflow), &inputs("counted")).await.unwrap();
    let rows: usize = report.collected["counted"].iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 2);
    assert_eq!(report.steps.iter().find(|step| step.name == "kept").unwrap().rows, 2);

    let mut typed = inputs("counted");
    typed.values.insert("least".to_owned(), Value::Int(LogicalType::Int64, 0));
    let report = session.run(workflow, &typed).await.unwrap();
    assert_eq!(report.steps.iter().find(|step| step.name == "kept").unwrap().rows, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_given_is_named() {
    let session = Session::try_new(SessionOptions::default()).unwrap();
    let workflow = Workflow::builder("built").source_provided("other").sql("s", "SELECT * FROM other").build().unwrap();
    let error = session.run(Arc::new(workflow), &inputs("s")).await.unwrap_err();
    let RunError::Failed(reports) = error else { panic!("{error}") };
    assert_eq!(reports.reports[0].code, "RM0502");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_columns_that_are_asked_for_cross_an_edge() {
    let session = Session::try_new(SessionOptions::default()).unwrap();
    let workflow = Workflow::builder("pruned")
        .source_provided("orders")
        .sql("shared", "SELECT id, customer, md5(customer) AS hash FROM orders")
        .sql("a", "SELECT count(id) AS n FROM shared")
        .sql("b", "SELECT max(customer) AS m FROM shared")
        .sql("both", "SELECT a.n, b.m FROM a, b")
        .build()
        .unwrap();
    let workflow = Arc::new(workflow);
    let explained = session.explain(Arc::clone(&workflow), &inputs("both"), true).await.unwrap();
    let shared = explained.stages.iter().find(|stage| stage.steps == ["shared"]).unwrap();
    let plan = shared.plan.as_ref().unwrap();
    assert!(!plan.contains("md5"), "{plan}");
    let report = session.run(workflow, &inputs("both")).await.unwrap();
    assert_eq!(report.collected["both"][0].num_rows(), 1);
    // The shared step ran once, for both of its readers.
    assert_eq!(report.steps.iter().find(|step| step.name == "shared").unwrap().rows, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_cross_a_streamed_edge() {
    let session = Session::try_new(SessionOptions::default()).unwrap();
    let workflow = Workflow::builder("filtered")
        .range("n", 0, 10_000)
        .sql("made", "SELECT value, value * 2 AS twice FROM n")
        .sql_with("kept", "SELECT twice FROM made WHERE value < 10", Resources::class(ResourceClass::Memory))
        .build()
        .unwrap();
    let report = session.run(Arc::new(workflow), &inputs("kept")).await.unwrap();
    let rows = |name: &str| report.steps.iter().find(|step| step.name == name).unwrap().rows;
    assert_eq!(rows("kept"), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn now_is_one_instant_for_the_whole_run() {
    let session = Session::try_new(SessionOptions::default()).unwrap();
    let workflow = Workflow::builder("clock")
        .range("n", 0, 10)
        .sql("one", "SELECT now() AS t, value FROM n")
        .sql_with("two", "SELECT now() AS t, value FROM n", Resources::class(ResourceClass::Memory))
        .sql("same", "SELECT count(*) AS n FROM one JOIN two ON one.value = two.value AND one.t = two.t")
        .build()
        .unwrap();
    let report = session.run(Arc::new(workflow), &inputs("same")).await.unwrap();
    let batch = &report.collected["same"][0];
    assert_eq!(batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().value(0), 10);
}
