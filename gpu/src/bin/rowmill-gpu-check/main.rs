//! Checks every GPU operator against its CPU reference on this machine's device, measures it beside the device's own
//! copy bandwidth and link, and prints a table and JSON.
//!
//! ```text
//! rowmill-gpu-check [--rows N] [--json FILE] [--check-only]
//! exit: 0 all equal, 1 an operator differs or failed, 2 wrong usage, 69 no usable device (said on stderr)
//! ```
//! One file, no configuration, nothing but this crate and Arrow: it is carried to a machine with a GPU and run there.
mod checks;
mod data;
mod measures;

use std::process::ExitCode;
use std::sync::Arc;

use rowmill_gpu::device::{Device, DeviceOptions};
use rowmill_gpu::probe::probe;
use serde_json::json;

/// sysexits' EX_UNAVAILABLE.
const NO_DEVICE: u8 = 69;

struct Arguments {
    rows: usize,
    json: Option<String>,
    check_only: bool,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { rows: 16_000_000, json: None, check_only: false };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rows" => {
                let value = words.next().ok_or("--rows needs a number")?;
                arguments.rows = value.parse().map_err(|_| format!("--rows needs a number, not {value}"))?;
            }
            "--json" => arguments.json = Some(words.next().ok_or("--json needs a file")?),
            "--check-only" => arguments.check_only = true,
            other => return Err(format!("{other} is not known; use --rows N, --json FILE or --check-only")),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("rowmill-gpu-check: {message}");
            return ExitCode::from(2);
        }
    };
    let info = match probe(0) {
        Ok(info) => info,
        Err(error) => {
            eprintln!("rowmill-gpu-check: {error}; nothing was checked");
            return ExitCode::from(NO_DEVICE);
        }
    };
    println!(
        "{}, compute capability {}.{}, {} multiprocessors, {:.1} GiB, driver {}, NVRTC {}.{}",
        info.name,
        info.compute_capability.0,
        info.compute_capability.1,
        info.multiprocessors,
        info.total_memory_bytes as f64 / f64::from(1 << 30),
        info.driver_version,
        info.nvrtc_version.0,
        info.nvrtc_version.1
    );
    let device = match Device::open(&DeviceOptions::default()) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("rowmill-gpu-check: {error}");
            return ExitCode::from(NO_DEVICE);
        }
    };
    run(&device, &arguments)
}

fn run(device: &Arc<Device>, arguments: &Arguments) -> ExitCode {
    let checks = checks::all(device);
    println!("\n{:<28} result", "operator");
    for check in &checks {
        println!("{:<28} {}", check.name, check.failure.as_deref().unwrap_or("equal"));
    }
    let mut failed = checks.iter().any(|check| check.failure.is_some());
    let mut measured = json!(null);
    if !arguments.check_only {
        match measures::all(device, arguments.rows) {
            Ok(report) => {
                report.print();
                measured = report.json();
            }
            Err(error) => {
                eprintln!("rowmill-gpu-check: measuring stopped: {error}");
                failed = true;
            }
        }
    }
    let results: Vec<_> = checks.iter().map(|c| json!({ "operator": c.name, "failure": c.failure })).collect();
    let info = device.info();
    let report = json!({
        "device": info.name,
        "compute_capability": [info.compute_capability.0, info.compute_capability.1],
        "driver": info.driver_version,
        "nvrtc": [info.nvrtc_version.0, info.nvrtc_version.1],
        "checks": results,
        "measures": measured,
    });
    match &arguments.json {
        Some(path) => {
            if let Err(error) = std::fs::write(path, format!("{report:#}\n")) {
                eprintln!("rowmill-gpu-check: {path} could not be written: {error}");
                failed = true;
            }
        }
        None => println!("\n{report:#}"),
    }
    ExitCode::from(u8::from(failed))
}
