//! `vector_top_k` in SQL, against distances that SQL computes itself.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type};
use datafusion::prelude::SessionContext;
use rowmill_gpu_plan::vector_top_k::vector_top_k;
use rowmill_gpu_plan::{GpuContext, GpuOptions, GpuUse};

use crate::emulator;

const DOCS: &str = "CREATE TABLE docs AS SELECT value AS id, make_array(cos(value * 0.1), sin(value * 0.1), 0.3) AS e \
                    FROM generate_series(1, 60)";

async fn context(gpu: GpuOptions) -> SessionContext {
    let context = SessionContext::new();
    context.register_udf(vector_top_k(GpuContext::new(gpu)).as_ref().clone());
    context.sql(DOCS).await.unwrap().collect().await.unwrap();
    context
}

async fn rows(context: &SessionContext, sql: &str) -> Vec<RecordBatch> {
    context.sql(sql).await.unwrap().collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

async fn error(context: &SessionContext, sql: &str) -> String {
    match context.sql(sql).await {
        Ok(frame) => frame.collect().await.unwrap_err().strip_backtrace(),
        Err(error) => error.strip_backtrace(),
    }
}

const SEARCH: &str = "SELECT id, hit['position'] AS position, hit['score'] AS score FROM \
    (SELECT id, unnest(vector_top_k(e, (SELECT array_agg(e ORDER BY id) FROM docs), 3, 'METRIC')) AS hit FROM docs \
     WHERE id IN (7, 30)) ORDER BY id, METRIC_ORDER";

async fn search(context: &SessionContext, metric: &str) -> Vec<(i64, i64)> {
    let order = if metric == "l2" { "score, position" } else { "score DESC, position" };
    let sql = SEARCH.replace("METRIC_ORDER", order).replace("METRIC", metric);
    let batches = rows(context, &sql).await;
    let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
    let positions = batch.column(1).as_primitive::<Int64Type>().values();
    assert_eq!(batch.num_rows(), 6, "{metric}");
    assert_eq!(positions[0], 7, "{metric}");
    assert!([[6, 8], [8, 6]].contains(&[positions[1], positions[2]]), "{metric}: {positions:?}");
    assert_eq!(positions[3], 30, "{metric}");
    let best = batch.column(2).as_primitive::<Float32Type>().value(0);
    let expected = match metric {
        "cosine" => 1.0,
        "dot" => 1.09,
        _ => 0.0,
    };
    assert!((best - expected).abs() < 1e-3, "{metric}: {best}");
    // Equal scores may change places by rounding.
    let ids = batch.column(0).as_primitive::<Int64Type>().values();
    let mut found: Vec<(i64, i64)> = ids.iter().copied().zip(positions.iter().copied()).collect();
    found.sort_unstable();
    found
}

#[test]
fn the_nearest_are_found_on_both() {
    let _alone = emulator::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let cpu = context(GpuOptions { usage: GpuUse::Never, ..GpuOptions::default() }).await;
        let device = context(GpuOptions { usage: GpuUse::Always, ..GpuOptions::default() }).await;
        for metric in ["cosine", "dot", "l2"] {
            assert_eq!(search(&cpu, metric).await, search(&device, metric).await, "{metric}");
        }
    });
}

#[test]
fn edges_and_errors() {
    let _alone = emulator::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let context = context(GpuOptions { usage: GpuUse::Never, ..GpuOptions::default() }).await;
        let corpus = "(SELECT array_agg(e) FROM docs)";
        let null = rows(&context, &format!("SELECT vector_top_k(NULL, {corpus}, 2) AS x")).await;
        assert!(null[0].column(0).is_null(0));
        let empty =
            rows(&context, "SELECT vector_top_k([1.0], (SELECT array_agg(e) FROM docs WHERE id < 0), 2) AS x").await;
        assert_eq!(empty[0].column(0).as_list::<i32>().value(0).len(), 0);
        let more =
            rows(&context, "SELECT vector_top_k([1.0, 0.0], [[1.0, 0.0], NULL, [0.0, 1.0]], 9, 'l2') AS x").await;
        assert_eq!(more[0].column(0).as_list::<i32>().value(0).len(), 2);
        for (sql, words) in [
            (format!("SELECT vector_top_k([1.0], {corpus}, 2)"), "dimensions"),
            (format!("SELECT vector_top_k(e, {corpus}, 0) FROM docs"), "from 1 to"),
            (format!("SELECT vector_top_k(e, {corpus}, 2, 'near') FROM docs"), "no metric"),
            (format!("SELECT vector_top_k(id, {corpus}, 2) FROM docs"), "an array of numbers"),
            ("SELECT vector_top_k(e, e, 2) FROM docs".to_owned(), "an array of embeddings"),
            ("SELECT vector_top_k(e, make_array(e), 2) FROM docs".to_owned(), "the same for every row"),
            ("SELECT vector_top_k([1.0], [[1.0], [1.0, 2.0]], 2)".to_owned(), "the same length"),
            (format!("SELECT vector_top_k(e, {corpus}) FROM docs"), "takes a query, a corpus, k"),
        ] {
            let error = error(&context, &sql).await;
            assert!(error.contains(words), "{sql}: {error}");
        }
    });
}
