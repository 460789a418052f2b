//! No device, a device that is too small, kernels that do not compile, a device that is lost: the results stay equal.
use rowmill_gpu_plan::{GpuContext, GpuOptions, GpuRule, GpuUse, Measurement, OffloadTable, Operator};

use crate::emulator::{self, Setting};
use crate::support::{always, assert_same, count, plans, rows, session, text};

const QUERIES: &[&str] = &[
    "SELECT sum(i64) AS s, count(*) AS n, min(f64) AS m FROM t WHERE i32 > 0",
    "SELECT i8, sum(i64) AS s FROM t GROUP BY i8",
    "SELECT id, f64 FROM t ORDER BY f64, id",
    "SELECT t.id, u.i64 FROM t JOIN u ON t.i8 = u.i8",
];

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Runs all queries; gives the rows that the device and the CPU took.
async fn compare(options: GpuOptions) -> (usize, usize) {
    let gpu = GpuContext::new(options);
    let context = session(3000, 2, 9);
    let (mut device, mut cpu) = (0, 0);
    for sql in QUERIES {
        let (plan, rewritten) = plans(&context, &gpu, sql).await;
        let expected = rows(&context, &plan).await.unwrap();
        let found = rows(&context, &rewritten.plan).await.unwrap();
        assert_same(&expected, &found, sql);
        device += count(&rewritten.plan, "gpu_rows");
        cpu += count(&rewritten.plan, "cpu_rows");
    }
    (device, cpu)
}

#[test]
fn no_device_changes_nothing_unless_it_is_required() {
    let _alone = emulator::alone();
    let _setting = Setting::new("GPU_EMU_INIT", "100");
    block_on(async {
        let context = session(100, 2, 1);
        for usage in [GpuUse::Auto, GpuUse::Always, GpuUse::Never] {
            let gpu = GpuContext::new(GpuOptions { usage, ..always() });
            let (plan, rewritten) = plans(&context, &gpu, QUERIES[1]).await;
            assert_eq!(text(&plan), text(&rewritten.plan));
            assert_eq!(rewritten.notes.len(), 1);
            let reason = if usage == GpuUse::Never { "`gpu.use` is `never`" } else { "no GPU is usable here" };
            assert!(rewritten.notes[0].contains(reason), "{:?}", rewritten.notes);
        }
        let gpu = GpuContext::new(GpuOptions { usage: GpuUse::Required, ..always() });
        let plan = context.sql(QUERIES[0]).await.unwrap().create_physical_plan().await.unwrap();
        let error = GpuRule::new(gpu).rewrite(plan).unwrap_err().strip_backtrace();
        assert!(error.contains("`gpu.use` is `required`") && error.contains("no GPU is usable"), "{error}");
    });
}

#[test]
fn a_small_device_takes_halves_or_nothing() {
    let _alone = emulator::alone();
    let launch = GpuOptions { launch_bytes: 1 << 20, ..always() };
    block_on(async {
        let (device, cpu) = compare(GpuOptions { memory_bytes: Some(160_000), ..launch.clone() }).await;
        assert!(device > 0, "{device} {cpu}");
        let (device, cpu) = compare(GpuOptions { memory_bytes: Some(500), ..launch }).await;
        assert!(device == 0 && cpu > 0, "{device} {cpu}");
    });
}

#[test]
fn kernels_that_do_not_compile_are_done_on_the_cpu() {
    let _alone = emulator::alone();
    let _setting = Setting::new("GPU_EMU_CXXFLAGS", "-no-such-flag");
    block_on(async {
        let (device, cpu) = compare(always()).await;
        assert!(device == 0 && cpu > 0, "{device} {cpu}");
    });
}

/// A twin is run for each chunk, and each time over that chunk.
#[test]
fn twins_do_every_chunk_for_itself() {
    let _alone = emulator::alone();
    let _setting = Setting::new("GPU_EMU_CXXFLAGS", "-no-such-flag");
    block_on(async {
        let gpu = GpuContext::new(GpuOptions { launch_bytes: 3000, ..always() });
        let context = session(3000, 1, 9);
        for sql in [
            "SELECT t.id, u.i64 FROM t JOIN u ON t.i8 = u.i8",
            "SELECT t.id, u.i64 FROM t LEFT JOIN u ON t.i64 = u.i64",
            "SELECT t.id, u.i64 FROM t RIGHT JOIN u ON t.i64 = u.i64",
            "SELECT t.id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.i32 = t.i32)",
            "SELECT t.id FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.i32 = t.i32)",
            "SELECT u.id FROM u WHERE NOT EXISTS (SELECT 1 FROM t WHERE u.i32 = t.i32)",
            "SELECT i16, sum(i64) AS s, count(*) AS n FROM t WHERE i32 > 0 GROUP BY i16",
            "SELECT sum(i64) AS s, count(*) AS n FROM t WHERE i32 > 0",
            "SELECT id, f64 FROM t ORDER BY f64, id",
        ] {
            let (plan, rewritten) = plans(&context, &gpu, sql).await;
            assert!(text(&rewritten.plan).contains("Gpu"), "{sql}");
            let expected = rows(&context, &plan).await.unwrap();
            let found = rows(&context, &rewritten.plan).await.unwrap();
            assert_same(&expected, &found, sql);
            assert!(count(&rewritten.plan, "cpu_rows") > 0, "{sql}");
        }
    });
}

/// A device that nobody measured is not slower than the CPU for certain only if it is left alone.
#[test]
fn without_a_measurement_everything_stays_on_the_cpu() {
    let _alone = emulator::alone();
    block_on(async {
        let gpu = GpuContext::new(GpuOptions { usage: GpuUse::Auto, ..always() });
        let context = session(3000, 2, 9);
        for sql in QUERIES {
            let (_, rewritten) = plans(&context, &gpu, sql).await;
            assert!(!text(&rewritten.plan).contains("Gpu"), "{sql}");
            assert!(
                rewritten.notes.iter().any(|note| note.contains("was not measured on this GPU")),
                "{:?}",
                rewritten.notes
            );
        }
    });
}

fn measured(operator: Operator, rows: u64, cpu_ms: f64, device_ms: f64) -> Measurement {
    Measurement { operator, rows, bytes: rows * 20, cpu_ms, host_ms: device_ms, resident_ms: Some(device_ms / 2.0) }
}

/// Options with a table of these measurements, in a folder of their own.
fn with_table(folder: &std::path::Path, measured: Vec<Measurement>) -> GpuOptions {
    let table = folder.join("offload.json");
    OffloadTable { device: "CPU emulator".into(), measured }.write(&table).unwrap();
    let kernels = Some(folder.join("kernels"));
    GpuOptions { usage: GpuUse::Auto, table: Some(table), kernels, launch_bytes: 4096, ..GpuOptions::default() }
}

/// By the table: few rows stay where they are, and nobody waits for a kernel: the CPU goes on while it is compiled.
#[test]
fn the_table_decides_and_nobody_waits_for_a_kernel() {
    let _alone = emulator::alone();
    let folder = tempfile::tempdir().unwrap();
    let fast = |operator| [measured(operator, 10, 1.0, 2.0), measured(operator, 100, 1e9, 1e3)];
    let all = Operator::ALL.into_iter().flat_map(fast).collect();
    let gpu = GpuContext::new(with_table(folder.path(), all));
    block_on(async {
        for sql in QUERIES {
            let small = session(8, 1, 9);
            let (_, rewritten) = plans(&small, &gpu, sql).await;
            assert!(!text(&rewritten.plan).contains("Gpu"), "{sql}: {:?}", rewritten.notes);
            let context = session(3000, 1, 9);
            let started = std::time::Instant::now();
            let mut runs = 0;
            loop {
                let (plan, rewritten) = plans(&context, &gpu, sql).await;
                assert!(text(&rewritten.plan).contains("Gpu"), "{sql}: {:?}", rewritten.notes);
                let expected = rows(&context, &plan).await.unwrap();
                assert_same(&expected, &rows(&context, &rewritten.plan).await.unwrap(), sql);
                let on_cpu = count(&rewritten.plan, "cpu_rows");
                assert!(on_cpu > 0 || runs > 0, "{sql}: the first chunk waited for its kernels");
                if on_cpu == 0 {
                    break;
                }
                runs += 1;
                assert!(started.elapsed().as_secs() < 120, "{sql}: its kernels are never ready");
            }
        }
    });
}

/// A device that breaks the table's word is asked once.
#[test]
fn a_device_that_is_slower_than_promised_is_left_alone() {
    let _alone = emulator::alone();
    let folder = tempfile::tempdir().unwrap();
    // A device that takes a millionth of a millisecond, beside a CPU that takes twice that.
    let liar = |operator| measured(operator, 10, 2e-6, 1e-6);
    let options = with_table(folder.path(), Operator::ALL.map(liar).to_vec());
    let gpu = GpuContext::new(options.clone());
    // Its kernels are there: it is the device that is slow.
    let warm = GpuContext::new(GpuOptions { usage: GpuUse::Always, ..options });
    block_on(async {
        let context = session(3000, 1, 9);
        for sql in [QUERIES[0], QUERIES[1], QUERIES[3]] {
            let (_, rewritten) = plans(&context, &warm, sql).await;
            rows(&context, &rewritten.plan).await.unwrap();
            let (plan, rewritten) = plans(&context, &gpu, sql).await;
            let expected = rows(&context, &plan).await.unwrap();
            assert_same(&expected, &rows(&context, &rewritten.plan).await.unwrap(), sql);
            let (device, cpu) = (count(&rewritten.plan, "gpu_rows"), count(&rewritten.plan, "cpu_rows"));
            assert!(device > 0 && cpu > device, "{sql}: {device} on the device, {cpu} on the CPU");
        }
    });
}

/// A lost device poisons its process, so this runs in one of its own.
#[test]
fn a_lost_device_is_given_up() {
    if std::env::var("TEST_POISON").is_err() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::a_lost_device_is_given_up"])
            .env("TEST_POISON", "1")
            .env("GPU_EMU_FAIL_LAUNCH", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let _alone = emulator::alone();
    block_on(async {
        let gpu = GpuContext::new(always());
        let context = session(500, 1, 3);
        let (plan, rewritten) = plans(&context, &gpu, QUERIES[0]).await;
        assert!(text(&rewritten.plan).contains("Gpu"));
        let expected = rows(&context, &plan).await.unwrap();
        assert_same(&expected, &rows(&context, &rewritten.plan).await.unwrap(), "lost");
        assert!(gpu.device().is_err_and(|reason| reason.contains("lost")));
        let (_, rewritten) = plans(&context, &gpu, QUERIES[0]).await;
        assert!(!text(&rewritten.plan).contains("Gpu"));
    });
}
