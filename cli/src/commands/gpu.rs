//! `rowmill gpu`

use rowmill::gpu::{Measurement, bench, has_cublas, probe};
use rowmill::spec::{Diagnostic, Diagnostics, Fault};
use rowmill::{GpuContext, GpuUse};
use serde_json::json;

use crate::args::GpuAction;
use crate::exit;
use crate::output::{count, failure, table};
use crate::settings::Settings;

/// Shows or measures the GPU.
pub(crate) async fn gpu(action: GpuAction, settings: &Settings) -> u8 {
    match action {
        GpuAction::Info => info(settings),
        GpuAction::Bench { rows, save } => measure(&rows, save, settings).await,
    }
}

fn info(settings: &Settings) -> u8 {
    let options = settings.gpu_options();
    let config = &settings.config().gpu;
    let saved = options.table.as_ref().filter(|path| path.exists());
    match probe(options.ordinal) {
        Err(error) if settings.is_json() => {
            println!("{}", json!({"usable": false, "reason": error.to_string(), "use": config.usage}));
        }
        Err(error) => println!("{error}\nwork of class `gpu` runs on the CPU, with equal results"),
        Ok(device) if settings.is_json() => {
            println!(
                "{}",
                json!({
                    "usable": true,
                    "device": device.ordinal,
                    "name": device.name,
                    "compute_capability": format!("{}.{}", device.compute_capability.0, device.compute_capability.1),
                    "multiprocessors": device.multiprocessors,
                    "memory_bytes": device.total_memory_bytes,
                    "free_bytes": device.free_memory_bytes,
                    "driver_cuda": version(device.driver_version),
                    "nvrtc": format!("{}.{}", device.nvrtc_version.0, device.nvrtc_version.1),
                    "cublas": has_cublas(),
                    "use": config.usage,
                    "table": saved,
                })
            );
        }
        Ok(device) => {
            let gib = |bytes: usize| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
            let table_of = match saved {
                Some(path) => path.display().to_string(),
                None if config.usage == "auto" => {
                    "none, so everything stays on the CPU; `rowmill gpu bench --save` measures one".to_owned()
                }
                None => "none; `rowmill gpu bench --save` measures one".to_owned(),
            };
            let cublas = match has_cublas() {
                true => "here",
                false => "not found; searches with many queries are slower without (`pip install nvidia-cublas-cu12`)",
            };
            let rows = [
                ("device", format!("{}: {}", device.ordinal, device.name)),
                ("compute capability", format!("{}.{}", device.compute_capability.0, device.compute_capability.1)),
                ("multiprocessors", device.multiprocessors.to_string()),
                ("memory", format!("{}, {} free", gib(device.total_memory_bytes), gib(device.free_memory_bytes))),
                ("driver's CUDA", version(device.driver_version)),
                ("NVRTC", format!("{}.{}", device.nvrtc_version.0, device.nvrtc_version.1)),
                ("cuBLAS", cublas.to_owned()),
                ("gpu.use", config.usage.to_owned()),
                ("measured table", table_of),
            ];
            let rows: Vec<Vec<String>> = rows.into_iter().map(|(key, value)| vec![key.to_owned(), value]).collect();
            print!("{}", table(&["", ""], &rows));
        }
    }
    exit::SUCCESS
}

fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

async fn measure(rows: &[u64], save: bool, settings: &Settings) -> u8 {
    let refuse = |code, message: String, help: &str| {
        let report = Diagnostic::error(code, message).fault(Fault::Environment).help(help);
        let reports = Diagnostics { reports: vec![report], ..Diagnostics::default() };
        failure(&reports, settings.is_json(), settings.is_colored())
    };
    let options = settings.gpu_options();
    let path = options.table.clone();
    // What is measured is not asked of the table that is being made.
    let gpu = GpuContext::new(rowmill::GpuOptions { usage: GpuUse::Always, ..options });
    if let Err(reason) = gpu.device() {
        return refuse("RM0710", reason, "there is nothing to measure; `rowmill gpu info` says what is here");
    }
    let quiet = settings.is_json();
    let say = |measured: &Measurement| {
        if !quiet {
            let (operator, rows) = (measured.operator.as_str(), count(measured.rows));
            eprintln!("{operator}, {rows} rows: CPU {:.2} ms, GPU {:.2} ms", measured.cpu_ms, measured.host_ms);
        }
    };
    let mut sizes = rows.to_vec();
    sizes.sort_unstable();
    sizes.dedup();
    let report = match bench::measure(&gpu, &sizes, settings.threads(), say).await {
        Ok(report) => report,
        Err(error) => return refuse("RM0710", error.strip_backtrace(), "the device failed while it was measured"),
    };
    let widths = &report.bandwidths;
    // Gigabytes a second that an operator read of its input.
    let rate = |bytes: u64, ms: f64| bytes as f64 / ms.max(1e-6) / 1e6;
    if quiet {
        println!(
            "{}",
            json!({
                "device": report.table.device,
                "copy_gb_s": widths.copy, "to_device_gb_s": widths.to_device, "to_host_gb_s": widths.to_host,
                "measured": report.table.measured,
            })
        );
    } else {
        println!(
            "{}: copy {:.1} GB/s, to the device {:.1} GB/s, to the host {:.1} GB/s\n",
            report.table.device, widths.copy, widths.to_device, widths.to_host
        );
        let lines = report.table.measured.iter().map(|m| {
            let resident = m.resident_ms.unwrap_or(m.host_ms);
            vec![
                m.operator.as_str().to_owned(),
                count(m.rows),
                format!("{:.2}", m.cpu_ms),
                format!("{:.2}", m.host_ms),
                format!("{resident:.2}"),
                format!("{:.2}", m.cpu_ms / m.host_ms),
                format!("{:.0}%", rate(m.bytes, m.host_ms) / widths.to_device * 100.0),
                format!("{:.0}%", rate(m.bytes, resident) / widths.copy * 100.0),
            ]
        });
        let header = ["operator", "rows", "CPU ms", "GPU ms", "resident ms", "times faster", "of the link", "of copy"];
        print!("{}", table(&header, &lines.collect::<Vec<_>>()));
    }
    match (save, path) {
        (true, Some(path)) => match report.table.write(&path) {
            Ok(()) if quiet => {}
            Ok(()) => println!("\nkept in {}; `gpu.use: auto` goes by it", path.display()),
            Err(error) => {
                return refuse(
                    "RM0704",
                    format!("cannot write {}: {error}", path.display()),
                    "check `gpu.dir`: who owns it, and whether its disk is full",
                );
            }
        },
        _ if !quiet => println!("\nnot kept; `--save` lets decisions go by it"),
        _ => {}
    }
    exit::SUCCESS
}
