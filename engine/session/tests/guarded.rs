//! SQL steps with an error policy: exactly the rows that fail are in the ledger, and nothing else changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use arrow::util::display::array_value_to_string;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt as _;
use rowmill::spec::{
    ItemPolicy, LogicalType, MappedText, MaxErrors, OnError, Resources, Spanned, SqlStep, StepKind, Value,
};
use rowmill::step::Outcome;
use rowmill::{Inputs, ItemsReport, RunError, RunReport, RunsOptions, Session, SessionOptions, Workflow};
use tokio_util::sync::CancellationToken;

fn sql(text: &str) -> StepKind {
    StepKind::Sql(SqlStep { text: MappedText::bare(text) })
}

/// `id` from 0, `word`, and `n`, a divisor.
fn table(words: &[Option<&str>]) -> RecordBatch {
    let ids = 0..words.len() as i64;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from_iter_values(ids.clone()))),
        ("word", Arc::new(StringArray::from(words.to_vec()))),
        ("n", Arc::new(Int64Array::from_iter(ids.map(|id| if id % 7 == 6 { None } else { Some(id % 5 - 1) })))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn session() -> Session {
    Session::try_new(SessionOptions::default()).unwrap()
}

/// Runs one guarded step `made` over the batches and gives its rows.
async fn run(batches: Vec<RecordBatch>, text: &str, items: ItemPolicy) -> Result<RunReport, RunError> {
    let workflow =
        Workflow::builder("w").source_provided("t").step("made", sql(text), items, Resources::default()).build();
    run_workflow(batches, workflow.unwrap(), &["made"]).await
}

async fn run_workflow(batches: Vec<RecordBatch>, workflow: Workflow, collect: &[&str]) -> Result<RunReport, RunError> {
    let schema = batches.first().unwrap().schema();
    let inputs = Inputs {
        tables: [("t".to_owned(), Arc::new(MemTable::try_new(schema, vec![batches]).unwrap()) as _)].into(),
        collect: collect.iter().map(|&name| name.to_owned()).collect(),
        ..Inputs::default()
    };
    let report = session().run(Arc::new(workflow), &inputs).await?;
    for items in &report.items {
        assert!(items.counts.is_conserved(), "{items:?}");
    }
    Ok(report)
}

fn items(report: &RunReport) -> &ItemsReport {
    report.items.iter().find(|items| items.step == "made").unwrap()
}

fn count(report: &RunReport, outcome: Outcome) -> u64 {
    items(report).counts.outcomes.get(outcome)
}

/// The rows of a step as text.
fn rows(report: &RunReport, step: &str) -> Vec<String> {
    report.collected[step].iter().flat_map(lines).collect()
}

fn lines(batch: &RecordBatch) -> Vec<String> {
    let value = |column: &ArrayRef, row| match column.is_null(row) {
        true => "null".to_owned(),
        false => array_value_to_string(column, row).unwrap(),
    };
    (0..batch.num_rows())
        .map(|row| batch.columns().iter().map(|column| value(column, row)).collect::<Vec<_>>().join("|"))
        .collect()
}

const WORDS: [Option<&str>; 7] = [Some("1"), Some("two"), Some("3"), None, Some("5x"), Some("6"), Some("")];

#[tokio::test(flavor = "multi_thread")]
async fn each_policy_does_what_it_says() {
    let text = "SELECT id, CAST(word AS INT) AS number FROM t";
    let report = run(vec![table(&WORDS)], text, ItemPolicy::default().skip_errors()).await.unwrap();
    assert_eq!(rows(&report, "made"), ["0|1", "2|3", "3|null", "5|6"]);
    assert_eq!((count(&report, Outcome::Ok), count(&report, Outcome::Skipped)), (4, 3));
    assert_eq!(items(&report).failures(), 0);
    assert_eq!(items(&report).counts.errors(), 3);

    let report = run(vec![table(&WORDS)], text, ItemPolicy::default().dead_letters()).await.unwrap();
    assert_eq!(rows(&report, "made"), ["0|1", "2|3", "3|null", "5|6"]);
    assert_eq!((count(&report, Outcome::DeadLettered), items(&report).failures()), (3, 3));
    let samples: Vec<_> =
        items(&report).samples.iter().map(|s| (s.item.as_str(), s.outcome, s.reason.as_str())).collect();
    assert_eq!(
        samples,
        [
            ("0:1", "dead_lettered", "bad_input: column `number`: cannot convert 'two' to int32"),
            ("0:4", "dead_lettered", "bad_input: column `number`: cannot convert '5x' to int32"),
            ("0:6", "dead_lettered", "bad_input: column `number`: cannot convert '' to int32"),
        ]
    );

    let default = ItemPolicy::default().default_on_error([("number", Value::Int(LogicalType::Int64, -1))]);
    let report = run(vec![table(&WORDS)], text, default).await.unwrap();
    assert_eq!(rows(&report, "made"), ["0|1", "null|-1", "2|3", "3|null", "null|-1", "5|6", "null|-1"]);
    assert_eq!((count(&report, Outcome::Ok), count(&report, Outcome::Defaulted)), (4, 3));
    assert_eq!(items(&report).failures(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_errors_stops_the_run() {
    let text = "SELECT CAST(word AS INT) AS number FROM t";
    let most = |most| ItemPolicy::default().skip_errors().max_errors(most);
    assert!(run(vec![table(&WORDS)], text, most(MaxErrors::Count(3))).await.is_ok());
    for limit in [MaxErrors::Count(2), MaxErrors::Share { share: 0.4, after: None }] {
        let error = run(vec![table(&WORDS)], text, most(limit)).await.unwrap_err();
        let RunError::Failed(reports) = error else { panic!("{error}") };
        assert_eq!(reports.reports[0].code, "RM0611");
        assert!(reports.reports[0].message.contains("3 of 7 items failed"), "{}", reports.reports[0].message);
    }
    // The first failure ends it where the policy is to fail; it says which item.
    let fail = ItemPolicy::default().max_errors(MaxErrors::Count(5));
    let error = run(vec![table(&WORDS)], text, fail).await.unwrap_err();
    let RunError::Failed(reports) = error else { panic!("{error}") };
    assert_eq!(reports.reports[0].code, "RM0610");
    assert!(reports.reports[0].message.contains("item 0:1"), "{}", reports.reports[0].message);
}

/// What each row makes alone, in plain DataFusion; `None` where that fails.
async fn one_by_one(all: &RecordBatch, text: &str) -> BTreeMap<usize, Option<Vec<String>>> {
    let mut made = BTreeMap::new();
    for row in 0..all.num_rows() {
        let context = SessionContext::new();
        let one = MemTable::try_new(all.schema(), vec![vec![all.slice(row, 1)]]).unwrap();
        context.register_table("t", Arc::new(one)).unwrap();
        let rows = async { context.sql(text).await?.collect().await }.await;
        made.insert(row, rows.ok().map(|batches| batches.iter().flat_map(lines).collect()));
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_stays_where_it_is_written() {
    // A plain plan would filter first, and never see that 'two' and '' are no numbers.
    let text = "SELECT id, a FROM (SELECT id, CAST(word AS INT) AS a FROM t) AS u WHERE id < 1";
    let report = run(vec![table(&WORDS)], text, ItemPolicy::default().dead_letters()).await.unwrap();
    assert_eq!(rows(&report, "made"), ["0|1"]);
    assert_eq!((count(&report, Outcome::Ok), count(&report, Outcome::DeadLettered)), (4, 3));
    let text = "SELECT id, CAST(word AS INT) AS a FROM (SELECT id, word FROM t WHERE id < 1) AS u";
    let report = run(vec![table(&WORDS)], text, ItemPolicy::default().dead_letters()).await.unwrap();
    assert_eq!((count(&report, Outcome::Ok), count(&report, Outcome::DeadLettered)), (7, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_fails_exactly_when_it_fails_alone() {
    let words = [
        Some("1"),
        Some("0"),
        Some("-3"),
        None,
        Some("x"),
        Some("2013-01-01"),
        Some("2013-13-01"),
        Some("99999999999"),
        Some("1.5"),
        Some("true"),
        Some(""),
        Some("9999999"),
        Some("2"),
        Some("7"),
        Some("2013-02-30"),
        Some("0"),
        Some(" 4 "),
        Some("2013-01-01T10:00:00"),
        None,
        Some("128"),
        Some("-128"),
        Some("1e3"),
        Some("8"),
        Some("nan"),
        // What is a time and what is not must be the same for a function and for the cast that stands in for it.
        Some("2013-02-11 10:00:00.123456789"),
        Some("2013-02-11T10:00:00+02:00"),
        Some("2013-02-11T10:00:00Z"),
        Some("2013-02-11 10"),
        Some("2013-2-1"),
        Some("20130211"),
        Some("10:00:00"),
        Some(" 2013-02-11"),
        Some("1677-09-20"),
        Some("2262-04-12"),
        Some("2013-02-11T24:00:00"),
        Some("2013-02-11T10:00:00 Europe/Paris"),
    ];
    let all = table(&words);
    let queries = [
        "SELECT id, CAST(word AS INT) AS a FROM t",
        "SELECT id, 10 / n AS a FROM t",
        "SELECT id, id % n AS a FROM t",
        "SELECT id, 10 / n + CAST(word AS BIGINT) AS a, CAST(word AS DOUBLE) AS b FROM t",
        "SELECT id, CAST(word AS DATE) AS d FROM t",
        "SELECT id, to_date(word) AS d FROM t",
        // The function announces a zone and leaves it out, so the zone is not compared.
        "SELECT id, CAST(to_timestamp(word, '%Y-%m-%dT%H:%M:%S') AS TIMESTAMP) AS d FROM t",
        "SELECT id, date_trunc('month', to_timestamp(word)) AS d FROM t",
        "SELECT id, CAST(CAST(word AS DOUBLE) AS DECIMAL(5, 2)) AS d FROM t",
        "SELECT id, CAST(99999999999.99 AS DECIMAL(38, 10)) * CAST(id * 1000000 AS DECIMAL(38, 10)) AS d FROM t",
        "SELECT id, CAST(id * 1000 AS DECIMAL(20, 2)) / CAST(n AS DECIMAL(20, 2)) AS d FROM t",
        "SELECT id, CASE WHEN n = 0 THEN -1 ELSE 10 / n END AS a FROM t",
        "SELECT id, CASE WHEN id < 12 THEN CASE WHEN n <> 0 THEN 10 / n ELSE CAST(word AS INT) END END AS a FROM t",
        "SELECT id, CASE CAST(word AS INT) WHEN 1 THEN 1 / n WHEN 2 THEN 2 ELSE id / n END AS a FROM t",
        "SELECT id, coalesce(n, CAST(word AS INT)) AS a FROM t",
        "SELECT id, coalesce(TRY_CAST(word AS INT), 0) / n AS a FROM t",
        "SELECT id, nullif(CAST(word AS INT), 1) IS NULL AS a FROM t",
        "SELECT id FROM t WHERE CAST(word AS INT) > 0",
        "SELECT id FROM t WHERE n <> 0 AND 10 / n > 1",
        "SELECT id FROM t WHERE n = 0 OR 10 / n > 1",
        "SELECT id, n > 0 OR 10 / n > 1 AS a FROM t",
        "SELECT id, CAST(word AS INT) AS a FROM t WHERE id % 2 = 0",
        "SELECT id, a + 1 AS b FROM (SELECT id, CAST(word AS INT) AS a, n FROM t WHERE 8 / n > 2) AS u WHERE n < 4",
        "SELECT * FROM (SELECT id, CAST(word AS INT) AS a FROM t) AS u WHERE a IS NULL OR a > 1",
        "SELECT id, CAST(word AS INT) + CAST(word AS INT) * 2 AS a, CAST(word AS INT) AS b FROM t",
        "SELECT id, 10 / n IN (CAST(word AS INT), 2) AS a FROM t",
        "SELECT id, CAST(word AS INT) BETWEEN 1 / n AND 5 AS a FROM t",
        "SELECT id, repeat('ab', CAST(word AS INT)) AS a FROM t WHERE length(word) < 3",
        "SELECT id, CAST(make_array(word, '1') AS INT[]) AS a FROM t",
        "SELECT id, -CAST(word AS TINYINT) AS a FROM t",
        "SELECT id, chr(CAST(n AS BIGINT)) AS a FROM t",
        "SELECT id, 1 AS one, CAST('5' AS INT) AS five FROM t",
    ];
    let mut failed = 0;
    for text in queries {
        let alone = one_by_one(&all, text).await;
        let expected: Vec<String> = alone.values().flatten().flatten().cloned().collect();
        let bad: Vec<String> =
            alone.iter().filter(|(_, rows)| rows.is_none()).map(|(row, _)| format!("0:{row}")).collect();
        failed += usize::from(!bad.is_empty());
        // Once as one batch, and once as three: the second and third begin with the lenient chain.
        for cut in [vec![all.clone()], vec![all.slice(0, 8), all.slice(8, 1), all.slice(9, all.num_rows() - 9)]] {
            let report = run(cut, text, ItemPolicy::default().dead_letters()).await.unwrap();
            // Some functions announce a zone and leave it out; a guarded step adds it.
            let zoneless = |rows: &[String]| rows.iter().map(|row| row.replace('Z', "")).collect::<Vec<_>>();
            assert_eq!(zoneless(&rows(&report, "made")), zoneless(&expected), "{text}");
            assert_eq!(count(&report, Outcome::DeadLettered), bad.len() as u64, "{text}");
            assert_eq!(count(&report, Outcome::Ok), (all.num_rows() - bad.len()) as u64, "{text}");
            let listed: Vec<&str> = items(&report).samples.iter().map(|sample| sample.item.as_str()).collect();
            assert_eq!(listed, bad[..bad.len().min(10)], "{text}");
        }
    }
    assert!(failed > 20, "only {failed} of the queries fail for some rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_batches_lose_exactly_their_bad_rows() {
    let words: Vec<String> =
        (0..50_000).map(|id| if id % 97 == 3 { format!("x{id}") } else { id.to_string() }).collect();
    let words: Vec<Option<&str>> = words.iter().map(|word| Some(word.as_str())).collect();
    let all = table(&words);
    let cut: Vec<RecordBatch> = (0..50).map(|at| all.slice(at * 1000, 1000)).collect();
    let bad = (0..50_000i64).filter(|id| id % 97 == 3);
    for text in [
        "SELECT id, CAST(word AS BIGINT) AS number FROM t",
        "SELECT id, CASE WHEN id >= 0 THEN CAST(word AS BIGINT) END AS number FROM t",
        "SELECT id, CASE WHEN id < 0 OR CAST(word AS BIGINT) >= 0 THEN CAST(word AS BIGINT) END AS number FROM t",
    ] {
        let report = run(cut.clone(), text, ItemPolicy::default().skip_errors()).await.unwrap();
        assert_eq!(count(&report, Outcome::Skipped), bad.clone().count() as u64);
        let sum = |column: usize| -> i64 {
            let batches = report.collected["made"].iter();
            batches.flat_map(|batch| batch.column(column).as_primitive::<Int64Type>().iter().flatten()).sum()
        };
        let expected: i64 = (0..50_000i64).filter(|id| id % 97 != 3).sum();
        assert_eq!((sum(0), sum(1)), (expected, expected), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_steps_do_not_change_what_fails() {
    // Two readers: it runs once. Neither the filter nor the columns that a reader wants reach into it.
    let workflow = Workflow::builder("w")
        .source_provided("t")
        .sql("before", "SELECT id, word FROM t WHERE id <> 1")
        .step(
            "made",
            sql("SELECT id, CAST(word AS INT) AS number FROM before"),
            ItemPolicy::default().dead_letters(),
            Resources::default(),
        )
        .sql("low", "SELECT id FROM made WHERE id < 3")
        .sql("high", "SELECT number FROM made WHERE number > 3")
        .build()
        .unwrap();
    let report = run_workflow(vec![table(&WORDS)], workflow, &["low", "high"]).await.unwrap();
    assert_eq!(items(&report).counts.items, 6);
    assert_eq!(count(&report, Outcome::DeadLettered), 2);
    assert_eq!((rows(&report, "low"), rows(&report, "high")), (vec!["0".into(), "2".into()], vec!["6".into()]));
    assert_eq!(report.steps.iter().find(|step| step.name == "made").unwrap().rows, 4);

    let workflow = Workflow::builder("w")
        .source_provided("t")
        .step(
            "made",
            sql("SELECT id, CAST(word AS INT) AS number FROM t"),
            ItemPolicy::default().dead_letters(),
            Resources::default(),
        )
        .sql("after", "SELECT count(*) AS n FROM made WHERE id = 0")
        .build()
        .unwrap();
    let report = run_workflow(vec![table(&WORDS)], workflow, &["after"]).await.unwrap();
    assert_eq!((items(&report).counts.items, count(&report, Outcome::DeadLettered)), (7, 3));
    assert_eq!(rows(&report, "after"), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rows_are_no_items() {
    let text = "SELECT CAST(word AS INT) AS number FROM t";
    let report = run(vec![table(&[])], text, ItemPolicy::default().dead_letters()).await.unwrap();
    assert_eq!((items(&report).counts.items, rows(&report, "made").len()), (0, 0));
    // Rows that a filter drops are ok, even where it drops all.
    let text = "SELECT CAST(word AS INT) AS number FROM t WHERE false";
    let report = run(vec![table(&WORDS)], text, ItemPolicy::default().dead_letters()).await.unwrap();
    assert_eq!((count(&report, Outcome::Ok), rows(&report, "made").len()), (7, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_the_policy() {
    let items = ItemPolicy::default().skip_errors().max_errors(MaxErrors::Count(9));
    let workflow = Workflow::builder("w")
        .source_provided("t")
        .step("made", sql("SELECT CAST(word AS INT) AS number FROM t WHERE id > 1"), items, Resources::default())
        .sql("after", "SELECT number FROM made WHERE number > 1")
        .build()
        .unwrap();
    let inputs = Inputs {
        tables: [(
            "t".to_owned(),
            Arc::new(MemTable::try_new(table(&WORDS).schema(), vec![vec![table(&WORDS)]]).unwrap()) as _,
        )]
        .into(),
        collect: vec!["after".to_owned()],
        ..Inputs::default()
    };
    let explained = session().explain(Arc::new(workflow), &inputs, true).await.unwrap().to_text();
    assert!(explained.contains("GuardedExec: on_error=skip, max_errors=9, where id@0 > 1"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_are_not_row_wise_are_refused() {
    for (text, what) in [
        ("SELECT count(*) AS n FROM t", "an aggregate"),
        ("SELECT word, max(n) AS n FROM t GROUP BY word", "an aggregate"),
        ("SELECT a.id FROM t AS a JOIN t AS b ON a.id = b.n", "more than one step or source"),
        ("SELECT id FROM t ORDER BY id", "an ORDER BY"),
        ("SELECT DISTINCT word FROM t", "a DISTINCT"),
        ("SELECT id FROM t LIMIT 3", "a LIMIT"),
        ("SELECT id, row_number() OVER (ORDER BY id) AS r FROM t", "a window"),
        ("SELECT unnest([id, n]) AS v FROM t", "an unnest"),
        ("SELECT id FROM t UNION ALL SELECT n FROM t", "more than one step or source"),
        ("SELECT id FROM t WHERE n = (SELECT max(n) FROM t)", "more than one step or source"),
        ("SELECT id, (SELECT 1) AS one FROM t", "a subquery"),
        ("SELECT 1 AS one", "no step or source"),
    ] {
        let error = run(vec![table(&WORDS)], text, ItemPolicy::default().skip_errors()).await.unwrap_err();
        let RunError::Failed(reports) = error else { panic!("{error}") };
        assert_eq!(reports.reports[0].code, "RM0312", "{text}: {}", reports.reports[0].message);
        assert!(reports.reports[0].message.contains(what), "{text}: {}", reports.reports[0].message);
    }
    // Plain `fail` is what a query does anyway: nothing is refused, and nothing is guarded.
    let plain = ItemPolicy { on_error: Some(Spanned::bare(OnError::Fail)), ..ItemPolicy::default() };
    let report = run(vec![table(&WORDS)], "SELECT count(*) AS n FROM t", plain).await.unwrap();
    assert_eq!((report.items.len(), rows(&report, "made")), (0, vec!["7".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_must_fit_the_columns() {
    let text = "SELECT id, CAST(word AS INT) AS number FROM t";
    for (column, value, code) in
        [("other", Value::Int(LogicalType::Int64, 1), "RM0304"), ("number", Value::String("many".into()), "RM0403")]
    {
        let items = ItemPolicy::default().default_on_error([(column, value)]);
        let error = run(vec![table(&WORDS)], text, items).await.unwrap_err();
        let RunError::Failed(reports) = error else { panic!("{error}") };
        assert_eq!(reports.reports[0].code, code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_runs_keep_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flow.yaml");
    let text = "rowmill: 1\nname: w\ndurable: true\nsources: {t: {path: words.csv}}\nsteps:\n  made:\n    \
                sql: SELECT id, CAST(word AS INT) AS number FROM t\n    on_error: dead_letter\n  \
                after:\n    sql: SELECT sum(number) AS total FROM made\n\
                sinks: {out: {from: after, path: out.csv}}\n";
    std::fs::write(&path, text).unwrap();
    for (words, dead, total) in [("0,1\n1,two\n2,3\n3,4x\n4,50\n", 2, "54"), ("0,one\n", 1, "")] {
        std::fs::write(folder.path().join("words.csv"), format!("id,word\n{words}")).unwrap();
        let runs = session().runs(RunsOptions::folder(folder.path().join("state"))).await.unwrap();
        let (workflow, inputs) = rowmill::load(&path).unwrap();
        let mut id = None;
        let cancel = CancellationToken::new();
        let report = runs.run(&path, workflow, &inputs, &cancel, &(), |run| id = Some(run)).await.unwrap();
        assert_eq!((count(&report, Outcome::DeadLettered), items(&report).samples.len() as u64), (dead, dead));
        assert!(items(&report).counts.is_conserved());
        let kept = runs.items(id.unwrap()).await.unwrap();
        let query = "SELECT step, outcome, message, item FROM items ORDER BY \"row\"";
        let query = rowmill::split_statements(query).unwrap().remove(0);
        let kept: Vec<RecordBatch> = kept.execute(query).await.unwrap().rows.try_collect().await.unwrap();
        assert_eq!(kept.iter().map(RecordBatch::num_rows).sum::<usize>() as u64, dead);
        if dead == 2 {
            assert_eq!(
                kept.iter().flat_map(lines).next().unwrap(),
                "made|dead_lettered|column `number`: cannot convert 'two' to int32|{\"id\":1,\"word\":\"two\"}"
            );
        }
        let out = std::fs::read_to_string(folder.path().join("out.csv")).unwrap();
        assert_eq!(out.lines().nth(1).unwrap_or("").trim_matches('"'), total);
    }
}
