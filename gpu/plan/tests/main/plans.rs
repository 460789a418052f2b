//! Aggregates, sorts and joins against plain DataFusion: types, nulls, NaN, both zeros, overflow, slices, few and many
//! rows, one partition and several.
use rowmill_gpu_plan::{GpuContext, GpuOptions};

use crate::emulator;
use crate::support::{always, check, plans, session, text};

const ROWS: [usize; 6] = [0, 1, 31, 32, 33, 1025];

const AGGREGATES: &[&str] = &[
    "SELECT count(*) AS n, count(i64) AS c, sum(i64) AS s, sum(i8) AS s8, min(f64) AS lo, max(f64) AS hi FROM t",
    "SELECT min(date) AS d, max(time) AS m, sum(money) AS s, avg(money) AS a, min(huge) AS h, max(money) AS x FROM t",
    "SELECT avg(i32) AS about_avg, sum(u32) AS s, sum(f64) AS about_sum, avg(f32) AS about_f, max(bool) AS b FROM t WHERE i32 > -5",
    "SELECT sum(i64 * 3 + i64b) AS s, count(*) AS n FROM t WHERE i64 <> 7 AND (f64 < f64b OR bool)",
    "SELECT sum(i64) FILTER (WHERE bool) AS s, count(*) FILTER (WHERE i8 > 0) AS n, min(rate) AS r FROM t WHERE u8 < 200",
    "SELECT sum(CASE WHEN i64b <> 0 THEN i64 / i64b ELSE 1 END) AS s FROM t WHERE NOT (bool IS NULL)",
    "SELECT count(*) AS n, min(i16) AS m FROM t WHERE i8 IN (0, 1, 2, NULL) OR i16 BETWEEN 1 AND 3 OR i32 IS DISTINCT FROM i32b",
    "SELECT count(*) AS n, max(time) AS m, min(date) AS d FROM t WHERE time < TIMESTAMP '1969-12-31T23:59:59.999999' \
     OR date BETWEEN DATE '1902-01-01' AND DATE '1999-02-03'",
    "SELECT sum(x) AS s FROM (SELECT i64 + 1 AS x, f64 AS y FROM t) WHERE y > 0.5",
];

const GROUPS: &[&str] = &[
    "SELECT i8, count(*) AS n, sum(i64) AS s, min(time) AS lo, max(date) AS d FROM t GROUP BY i8",
    "SELECT bool, date, count(i64) AS n, avg(i32) AS about_a FROM t WHERE boolb IS NOT NULL GROUP BY bool, date",
    "SELECT f64, sum(money) AS s, avg(money) AS a FROM t GROUP BY f64",
    "SELECT huge, i64, min(u64) AS m, count(*) AS n FROM t GROUP BY huge, i64",
    "SELECT i64 % 7 AS k, sum(f64b) FILTER (WHERE bool) AS about_s, count(*) AS n FROM t GROUP BY i64 % 7",
    "SELECT CASE WHEN i32 > i32b THEN 1 ELSE 2 END AS k, max(money) AS m FROM t GROUP BY 1 HAVING count(*) > 1",
];

const SORTS: &[&str] = &[
    "SELECT i8, f64, id FROM t ORDER BY f64 DESC NULLS LAST, i8",
    "SELECT money, bool, id FROM t ORDER BY money, bool DESC NULLS FIRST",
    "SELECT arrow_cast(i16, 'Utf8') AS word, i16, u64 FROM t ORDER BY u64 NULLS FIRST, i16 DESC",
];

const JOINS: &[&str] = &[
    "SELECT t.id, u.i64, u.f64 FROM t JOIN u ON t.i8 = u.i8",
    "SELECT t.id, u.money, u.id AS other FROM t LEFT JOIN u ON t.i16 = u.i16 AND t.bool = u.bool",
    "SELECT t.id, u.id AS other FROM t RIGHT JOIN u ON t.date = u.date",
    "SELECT id, f64 FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.i32 = t.i32)",
    "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.i64 = t.i64)",
    "SELECT u.id, arrow_cast(t.i8, 'Utf8') AS word FROM u JOIN t ON u.huge = t.huge",
];

fn run(queries: &[&str], node: &str) {
    let _alone = emulator::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let gpu = GpuContext::new(always());
        for (at, sql) in queries.iter().enumerate() {
            for (rows, partitions) in ROWS.into_iter().map(|rows| (rows, 1)).chain([(0, 3), (33, 3), (1025, 3)]) {
                let context = session(rows, partitions, (rows + at) as u64);
                check(&context, &gpu, sql, node).await;
            }
        }
    });
}

#[test]
fn aggregates_without_groups() {
    run(AGGREGATES, "GpuFilterAggregateExec");
}

#[test]
fn aggregates_by_group() {
    run(GROUPS, "GpuGroupByExec");
}

#[test]
fn joins() {
    run(JOINS, "GpuJoinExec");
}

#[test]
fn sorts_keep_their_order() {
    let _alone = emulator::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let gpu = GpuContext::new(always());
        for sql in SORTS {
            for (rows, partitions) in [(0, 1), (1, 1), (33, 1), (1025, 1), (33, 3), (3000, 3)] {
                let context = session(rows, partitions, rows as u64);
                check(&context, &gpu, sql, "GpuSortExec").await;
                // As bags they are equal; the keys are in one order too.
                let (plan, taken) = plans(&context, &gpu, sql).await;
                let expected = crate::support::rows(&context, &plan).await.unwrap();
                let found = crate::support::rows(&context, &taken.plan).await.unwrap();
                let keys: &[usize] = if sql.contains("word") { &[2, 1] } else { &[0, 1] };
                let keys = if sql.contains("f64 DESC") { &[1, 0] } else { keys };
                let (expected, found) = (expected.project(keys).unwrap(), found.project(keys).unwrap());
                crate::data::assert_equal(&expected, &found, sql);
            }
        }
    });
}

/// The smallest and the largest float of a group hang on the order of the rows where there is a NaN or a -0.0: the CPU
/// does those rows, and gives what it gives without a device.
#[test]
fn floats_without_an_order_are_done_on_the_cpu() {
    let _alone = emulator::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let gpu = GpuContext::new(GpuOptions { launch_bytes: 1 << 30, ..always() });
        for (sql, takes) in [
            // Groups whose answer hangs on nothing are compared; with one partition or several DataFusion itself answers
            // differently for the others.
            ("SELECT i8, min(f64) AS lo, max(f64) AS hi FROM t GROUP BY i8 HAVING count(f64) = \
              count(CASE WHEN f64 > -9 AND f64 <= 1e300 AND f64 <> 0 THEN 1 END)", false),
            ("SELECT i8, min(f64) AS lo FROM t WHERE f64 BETWEEN -5 AND 4 GROUP BY i8", false),
            ("SELECT i8, min(f64) AS lo FROM t WHERE f64 < 0 AND f64 > -2 GROUP BY i8", true),
            ("SELECT bool, min(-(f64 * f64)) AS lo, max(f64 * f64 + 1) AS hi FROM t WHERE f64 BETWEEN 1 AND 4 GROUP BY bool", true),
            ("SELECT i8, max(CASE WHEN f64 > 0.5 AND f64 < 5 THEN f64 END) AS hi FROM t GROUP BY i8", true),
        ] {
            for seed in 0..4 {
                let context = session(700, 1, seed);
                let (plan, taken) = plans(&context, &gpu, sql).await;
                assert!(text(&taken.plan).contains("GpuGroupByExec"), "{sql}: {:?}", taken.notes);
                let expected = crate::support::rows(&context, &plan).await.unwrap();
                let found = crate::support::rows(&context, &taken.plan).await.unwrap();
                crate::support::assert_same(&expected, &found, sql);
                assert_eq!(crate::support::count(&taken.plan, "cpu_rows") == 0, takes, "{sql}, seed {seed}");
            }
        }
    });
}

/// Texts and dictionaries go past the device, or keep a node off it.
#[test]
fn texts_and_dictionaries() {
    let _alone = emulator::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let gpu = GpuContext::new(always());
        let context = session(700, 3, 8);
        let words = "(SELECT *, arrow_cast(arrow_cast(i8, 'Utf8'), 'Dictionary(Int32, Utf8)') AS dict, \
                     arrow_cast(arrow_cast(i64, 'Utf8'), 'Utf8View') AS viewed, arrow_cast(u16, 'LargeUtf8') AS large FROM ";
        for (sql, node) in [
            (format!("SELECT dict, viewed, large, i32 FROM {words} t) ORDER BY i32, id"), "GpuSortExec"),
            (format!("SELECT a.dict, b.viewed, b.large FROM {words} t) a JOIN {words} u) b ON a.i8 = b.i8"), "GpuJoinExec"),
            (format!("SELECT a.id, b.dict, b.viewed FROM {words} t) a LEFT JOIN {words} u) b ON a.i64 = b.i64"), "GpuJoinExec"),
        ] {
            check(&context, &gpu, &sql, node).await;
        }
        for (sql, reason) in [
            (format!("SELECT dict, sum(i64) AS s FROM {words} t) GROUP BY dict"), "Dictionary"),
            (format!("SELECT max(viewed) AS m FROM {words} t)"), "left"),
            (format!("SELECT sum(i64) AS s FROM {words} t) WHERE dict LIKE '%7'"), "FilterExec: left"),
            (format!("SELECT id FROM {words} t) ORDER BY viewed, id"), "Utf8View"),
            (format!("SELECT a.id FROM {words} t) a JOIN {words} u) b ON a.large = b.large"), "LargeUtf8"),
            ("SELECT sum(CASE f64 WHEN 0.0 THEN i64 ELSE 1 END) AS s FROM t".to_owned(), "tells its zeros apart"),
        ] {
            let (plan, taken) = plans(&context, &gpu, &sql).await;
            let said = taken.notes.join("\n");
            assert!(said.contains(reason), "{sql}: {said}");
            let expected = crate::support::rows(&context, &plan).await.unwrap();
            let found = crate::support::rows(&context, &taken.plan).await.unwrap();
            crate::support::assert_same(&expected, &found, &sql);
        }
    });
}

/// Several operators of one plan, the partitions that they rely on, and sentences about what was left.
#[test]
fn whole_plans() {
    let _alone = emulator::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let gpu = GpuContext::new(always());
        let context = session(1025, 3, 5);
        check(
            &context,
            &gpu,
            "SELECT a.i8, a.n, b.s FROM (SELECT i8, count(*) AS n FROM t GROUP BY i8) a \
             JOIN (SELECT i8, sum(id) AS s FROM u GROUP BY i8) b ON a.i8 = b.i8",
            "GpuGroupByExec",
        )
        .await;
        check(
            &context,
            &gpu,
            "SELECT t.i16, sum(u.i64) AS s FROM t JOIN u ON t.i8 = u.i8 WHERE t.i32 > 3 GROUP BY t.i16",
            "GpuJoinExec",
        )
        .await;
        for (sql, reason) in [
            ("SELECT count(DISTINCT i8) AS n, sum(i16) AS s, avg(DISTINCT i32) AS about_a FROM t", "distinct"),
            ("SELECT median(i32) AS m FROM t", "`median` has no kernel"),
            ("SELECT i8, i16, count(*) AS n FROM t GROUP BY ROLLUP (i8, i16)", "grouping sets"),
            ("SELECT id FROM t ORDER BY i64 LIMIT 3", "the first 3 rows"),
            ("SELECT t.id FROM t JOIN u ON t.i8 = u.i8 AND t.i64 < u.i64", "a condition beside"),
            ("SELECT t.id FROM t JOIN u ON t.f64 = u.f64", "a join on floats"),
            ("SELECT t.id FROM t FULL JOIN u ON t.i8 = u.i8", "Full join has no kernel"),
            ("SELECT sum(length(arrow_cast(i8, 'Utf8'))) AS s FROM t", "no kernel"),
            ("SELECT id, row_number() OVER (ORDER BY id) AS n FROM t", "WindowAggExec: left"),
            ("SELECT max(huge) AS m FROM t GROUP BY i8", "not atomic"),
        ] {
            let (plan, rewritten) = plans(&context, &gpu, sql).await;
            let said = rewritten.notes.join("\n");
            assert!(said.contains(reason), "{sql}: {said}\n{}", text(&plan));
            let expected = crate::support::rows(&context, &plan).await.unwrap();
            let found = crate::support::rows(&context, &rewritten.plan).await.unwrap();
            if !sql.contains("LIMIT") {
                crate::support::assert_same(&expected, &found, sql);
            }
        }
    });
}
