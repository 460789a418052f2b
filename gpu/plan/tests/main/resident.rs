//! Operators that follow each other on the device: the rows between them never come to the host, and the results are those
//! of plain DataFusion.
use rowmill_gpu_plan::{GpuContext, GpuOptions};

use crate::emulator::{self, Setting};
use crate::support::{always, assert_same, check, count, plans, rows, session, text};

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Aggregates over joins of every kind, joins over joins, filters and projections between them.
const CHAINS: &[&str] = &[
    "SELECT count(*) AS n, sum(t.i64 + u.i64) AS s, min(u.f64) AS lo FROM t JOIN u ON t.i8 = u.i8",
    "SELECT t.i16, sum(u.money) AS s, count(u.id) AS n, max(t.date) AS d FROM t LEFT JOIN u ON t.i8 = u.i8 AND t.bool = u.bool GROUP BY t.i16",
    "SELECT u.i16, count(t.i8) AS n, sum(u.huge) AS s FROM t RIGHT JOIN u ON t.i32 = u.i32 GROUP BY u.i16",
    "SELECT bool, sum(i64) AS s, count(*) AS n FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.i16 = t.i16) GROUP BY bool",
    "SELECT bool, sum(i64) AS s, count(*) AS n FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.i16 = t.i16) GROUP BY bool",
    "SELECT count(*) AS n FROM (SELECT arrow_cast(t.i8, 'Utf8') AS word, t.i8 FROM t) t JOIN u ON t.i8 = u.i8",
    "SELECT a.bool, sum(c.i64) AS s, count(*) AS n, sum(a.id) AS i FROM t a JOIN u b ON a.i8 = b.i8 JOIN u c ON b.i16 = c.i16 GROUP BY a.bool",
    "SELECT sum(c.i64) AS s, min(b.date) AS d FROM t a LEFT JOIN u b ON a.i32 = b.i32 LEFT JOIN u c ON b.i16 = c.i16",
    "SELECT t.i8 + 1 AS k, sum(CASE WHEN t.bool THEN t.money END) AS s FROM t LEFT JOIN u ON t.i8 = u.i8 WHERE u.i64 IS NULL OR t.i64 < u.i64 GROUP BY t.i8 + 1",
];

#[test]
fn rows_between_operators_stay_on_the_device() {
    let _alone = emulator::alone();
    block_on(async {
        for launch_bytes in [16 * 1024, 64 << 20] {
            let gpu = GpuContext::new(GpuOptions { launch_bytes, ..always() });
            for (at, sql) in CHAINS.iter().enumerate() {
                for (size, partitions) in [(1, 1), (33, 1), (700, 1), (700, 3)] {
                    let context = session(size, partitions, (size + at) as u64);
                    check(&context, &gpu, sql, "Exec: ").await;
                    let (plan, rewritten) = plans(&context, &gpu, sql).await;
                    let shown = text(&rewritten.plan);
                    assert!(shown.contains("joined rows stay on the device"), "{sql}\n{shown}\n{}", text(&plan));
                    rows(&context, &rewritten.plan).await.unwrap();
                    assert_eq!(count(&rewritten.plan, "cpu_rows"), 0, "{sql}");
                    // With anything joined at all, that is what the aggregate read, and none of it from the host.
                    let resident = count(&rewritten.plan, "resident_rows");
                    assert!(resident > 0 || size < 700, "{sql}");
                }
            }
        }
    });
}

/// Columns that cannot be there, and nodes between that do more than move columns: the rows come to the host, as ever.
#[test]
fn other_rows_come_to_the_host() {
    let _alone = emulator::alone();
    block_on(async {
        let gpu = GpuContext::new(always());
        let context = session(700, 3, 4);
        for sql in [
            "SELECT u.i8, sum(t.i64) AS s FROM t JOIN u ON t.i8 = u.i8 WHERE t.i64 < u.i64 OR u.bool GROUP BY u.i8",
            "SELECT u.i8, sum(t.i64) AS s FROM t JOIN u ON t.i8 = u.i8 WHERE arrow_cast(t.i16, 'Utf8') <> '7' GROUP BY u.i8",
            "SELECT t.id, u.i64 FROM t JOIN u ON t.i8 = u.i8 JOIN (SELECT DISTINCT i16 FROM u) v ON v.i16 = t.i16",
        ] {
            let (plan, rewritten) = plans(&context, &gpu, sql).await;
            let expected = rows(&context, &plan).await.unwrap();
            assert_same(&expected, &rows(&context, &rewritten.plan).await.unwrap(), sql);
        }
    });
}

/// A device that is too small for all of a chunk takes halves; one that is too small for anything, nothing.
#[test]
fn a_small_device_joins_in_halves_or_not_at_all() {
    let _alone = emulator::alone();
    block_on(async {
        for (memory_bytes, on_device) in [(Some(500_000), true), (Some(400), false)] {
            let gpu = GpuContext::new(GpuOptions { memory_bytes, launch_bytes: 1 << 20, ..always() });
            let context = session(3000, 2, 5);
            let (mut device, mut cpu) = (0, 0);
            for sql in CHAINS {
                let (plan, rewritten) = plans(&context, &gpu, sql).await;
                let expected = rows(&context, &plan).await.unwrap();
                assert_same(&expected, &rows(&context, &rewritten.plan).await.unwrap(), sql);
                device += count(&rewritten.plan, "resident_rows");
                cpu += count(&rewritten.plan, "cpu_rows");
            }
            assert_eq!((device > 0, on_device || cpu > 0), (on_device, true), "{memory_bytes:?}");
        }
    });
}

/// The aggregate's kernel does not compile, or its rows have no order there: the joined rows come to the host.
#[test]
fn what_the_aggregate_cannot_do_is_joined_for_the_cpu() {
    let _alone = emulator::alone();
    block_on(async {
        let context = session(700, 1, 6);
        let unordered = "SELECT t.i8, min(CASE WHEN u.f64 = 0 THEN 1.5e0 ELSE u.f64 * u.f64 END) AS lo, count(*) AS n \
                         FROM t JOIN u ON t.i8 = u.i8 WHERE u.f64 > -2 AND u.f64 < 4 GROUP BY t.i8";
        let gpu = GpuContext::new(GpuOptions { launch_bytes: 8 * 1024, ..always() });
        let (plan, rewritten) = plans(&context, &gpu, unordered).await;
        let expected = rows(&context, &plan).await.unwrap();
        assert_same(&expected, &rows(&context, &rewritten.plan).await.unwrap(), unordered);
        let faulty = "SELECT sum(t.i64 % u.i64) AS s FROM t JOIN u ON t.i8 = u.i8";
        let (plan, rewritten) = plans(&context, &gpu, faulty).await;
        let (expected, found) = (rows(&context, &plan).await, rows(&context, &rewritten.plan).await);
        assert_eq!(expected.unwrap_err().strip_backtrace(), found.unwrap_err().strip_backtrace());
        let _setting = Setting::new("GPU_EMU_CXXFLAGS", "-no-such-flag");
        let gpu = GpuContext::new(always());
        for sql in CHAINS {
            let (plan, rewritten) = plans(&context, &gpu, sql).await;
            let expected = rows(&context, &plan).await.unwrap();
            assert_same(&expected, &rows(&context, &rewritten.plan).await.unwrap(), sql);
            assert_eq!(count(&rewritten.plan, "gpu_rows"), 0, "{sql}");
        }
    });
}
