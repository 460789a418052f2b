//! What happens when the device is missing, too small, refuses a kernel or loses its context.
use rowmill_gpu::compile::{CompileCounts, Floats, compile_to_cubin};
use rowmill_gpu::device::{Device, DeviceOptions};
use rowmill_gpu::expr::column;
use rowmill_gpu::ops::aggregate::Aggregate;
use rowmill_gpu::ops::filter_aggregate::FilterAggregate;
use rowmill_gpu::{Error, probe};

use crate::data;
use crate::emulator::{self, Setting};

#[test]
fn no_device_is_an_error_in_words() {
    let _alone = emulator::alone();
    let _setting = Setting::new("GPU_EMU_INIT", "100");
    let error = probe::probe(0).unwrap_err();
    assert!(matches!(error, Error::NoDevice(_)) && error.falls_back_to_cpu(), "{error}");
    assert!(matches!(Device::open(&DeviceOptions::default()), Err(Error::NoDevice(_))));
}

#[test]
fn the_probe_describes_the_device() {
    let _alone = emulator::alone();
    let info = probe::probe(0).unwrap();
    assert_eq!((info.name.as_str(), info.compute_capability, info.multiprocessors), ("CPU emulator", (9, 0), 2));
    assert!(matches!(probe::probe(1), Err(Error::NoDevice(_))));
}

#[test]
fn a_device_that_is_full_is_out_of_memory_and_gives_everything_back() {
    let _setting;
    let device = {
        let alone = emulator::alone();
        _setting = Setting::new("GPU_EMU_MEMORY_BYTES", "1000000");
        drop(alone);
        emulator::open(&DeviceOptions::default())
    };
    let memory = device.device.memory();
    assert_eq!(memory.budget_bytes(), 850_000);
    let half = memory.allocate(500_000).unwrap();
    assert!(matches!(memory.allocate(500_000), Err(Error::OutOfMemory { reserved_bytes: 500_000, .. })));
    drop(half);
    assert_eq!(memory.reserved_bytes(), 0);
    assert!(memory.allocate(500_000).is_ok());
}

#[test]
fn a_kernel_that_does_not_compile_is_refused_and_not_tried_again() {
    let device = emulator::device();
    let error = compile_to_cubin("extern \"C\" __global__ void broken(", "sm_90", Floats::AsOnCpu, false).unwrap_err();
    assert!(matches!(&error, Error::Compile { log, .. } if log.contains("error")), "{error}");
    assert!(error.falls_back_to_cpu());
    let compiler = device.device.compiler();
    for _ in 0..2 {
        assert!(matches!(compiler.function("broken(", "broken", Floats::AsOnCpu), Err(Error::Compile { .. })));
    }
    assert_eq!(compiler.counts(), CompileCounts { refused: 1, ..CompileCounts::default() });
}

#[test]
fn an_expression_beyond_a_kernels_arguments_is_refused() {
    use rowmill_gpu::expr::{BinaryOp, literal};
    let one = || literal(arrow::array::Int64Array::new_scalar(1)).unwrap();
    let sum = (0..300).fold(column(data::at("i64")), |sum, _| sum.binary(BinaryOp::Add, one()));
    let aggregates = [Aggregate::new(rowmill_gpu::ops::aggregate::AggregateFunction::Sum, sum, "s")];
    assert!(matches!(FilterAggregate::try_new(data::schema(), None, &aggregates), Err(Error::Unsupported(_))));
}

#[test]
fn a_group_by_that_does_not_fit_gives_everything_back() {
    let device = emulator::open(&DeviceOptions { budget_bytes: Some(60_000), ..DeviceOptions::default() });
    let query = crate::group_by::query(&["i64"], None, &crate::group_by::aggregates());
    let batch = data::batch(2000, 1);
    let error = query.upload(&device.device, &batch).and_then(|batch| query.run(&device.device, &batch)).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }) && error.falls_back_to_cpu(), "{error}");
    assert_eq!(device.device.memory().reserved_bytes(), 0);
}

#[test]
fn compiled_kernels_are_kept_in_memory_and_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let options = DeviceOptions { kernel_cache: Some(folder.path().to_owned()), ..DeviceOptions::default() };
    let query = FilterAggregate::try_new(data::schema(), None, &[Aggregate::count_rows("rows")]).unwrap();
    let batch = data::batch(10, 1);
    {
        let device = emulator::open(&options);
        query.run_host(&device.device, &batch).unwrap();
        query.run_host(&device.device, &batch).unwrap();
        let counts = device.device.compiler().counts();
        assert_eq!(counts, CompileCounts { from_memory: 1, compiled: 1, ..CompileCounts::default() });
    }
    let device = emulator::open(&options);
    query.run_host(&device.device, &batch).unwrap();
    assert_eq!(device.device.compiler().counts(), CompileCounts { from_disk: 1, ..CompileCounts::default() });
    drop(device);
    // A damaged file is a miss.
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        std::fs::write(entry.unwrap().path(), "not a kernel").unwrap();
    }
    let device = emulator::open(&options);
    query.run_host(&device.device, &batch).unwrap();
    assert_eq!(device.device.compiler().counts(), CompileCounts { compiled: 1, ..CompileCounts::default() });
}

/// An illegal access poisons the context for the rest of the process, so this runs in a process of its own.
#[test]
fn an_illegal_access_poisons_the_device() {
    if std::env::var("TEST_POISON").is_err() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::an_illegal_access_poisons_the_device"])
            .env("TEST_POISON", "1")
            .env("GPU_EMU_FAIL_LAUNCH", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let device = emulator::device();
    let aggregates =
        [Aggregate::new(rowmill_gpu::ops::aggregate::AggregateFunction::Sum, column(data::at("i64")), "s")];
    let query = FilterAggregate::try_new(data::schema(), None, &aggregates).unwrap();
    let batch = data::batch(100, 1);
    for _ in 0..2 {
        let error = query.run_host(&device.device, &batch).unwrap_err();
        assert!(error.is_poisoned() && error.falls_back_to_cpu(), "{error}");
    }
    // The CPU finishes what the device cannot.
    assert!(query.run_on_cpu(&batch).is_ok());
}
