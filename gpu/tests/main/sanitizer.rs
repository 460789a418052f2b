//! The kernels under AddressSanitizer: this binary runs its own tests again, with kernels compiled by
//! `g++ -fsanitize=address`. Device buffers are exact heap blocks in the emulator, so one byte past the end is found.
use std::process::Command;

use rowmill_gpu::compile::{Floats, compile_to_cubin};

use crate::emulator;

/// The tests that run kernels.
const KERNEL_TESTS: [&str; 5] = ["expressions::", "filter_aggregate::", "group_by::", "sort_join::", "top_k::"];

fn sanitized(tests: &[&str], extra: &[&str]) -> Option<std::process::Output> {
    let found = Command::new("g++").arg("-print-file-name=libasan.so").output().expect("g++");
    let runtime = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    if !runtime.contains('/') {
        assert!(std::env::var("GPU_ASAN").as_deref() != Ok("required"), "libasan.so is required but not here");
        eprintln!("ignored: g++ has no libasan.so here");
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(tests)
        .args(["--test-threads=1"])
        .args(extra)
        .env("LD_PRELOAD", runtime)
        .env("GPU_EMU_CXXFLAGS", "-fsanitize=address")
        .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
        .output()
        .unwrap();
    Some(output)
}

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn kernels_stay_in_bounds() {
    if emulator::sanitized() {
        return;
    }
    if let Some(output) = sanitized(&KERNEL_TESTS, &[]) {
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// The sanitizer run can fail: a kernel that reads one value too far is caught.
#[test]
fn a_kernel_out_of_bounds_is_caught() {
    if emulator::sanitized() {
        return;
    }
    if let Some(output) = sanitized(&["sanitizer::reads_one_value_too_far"], &["--ignored"]) {
        let text = text(&output);
        assert!(!output.status.success() && text.contains("heap-buffer-overflow"), "{text}");
    }
}

#[test]
#[ignore = "is run by a_kernel_out_of_bounds_is_caught and must crash"]
fn reads_one_value_too_far() {
    use rowmill_gpu::ops::project::Project;
    let device = emulator::device();
    // A batch that claims one row more than its buffer holds.
    let schema = crate::data::schema();
    let project =
        Project::try_new(&schema, vec![("x".into(), rowmill_gpu::expr::column(crate::data::at("id")))]).unwrap();
    let honest = project.upload(&device.device, &crate::data::batch(64, 1)).unwrap();
    let stretched = honest
        .columns()
        .iter()
        .map(|column| {
            std::sync::Arc::new(rowmill_gpu::batch::DeviceColumn {
                data_type: column.data_type.clone(),
                rows: 65,
                values: device
                    .device
                    .upload(&device.device.download(&column.values, column.values.bytes()).unwrap())
                    .unwrap(),
                validity: None,
            })
        })
        .collect();
    let lying = rowmill_gpu::batch::DeviceBatch::try_new(schema, stretched, 65).unwrap();
    let _ = project.run(&device.device, &lying);
    assert!(compile_to_cubin("", "sm_90", Floats::AsOnCpu, false).is_ok(), "never reached under the sanitizer");
}
