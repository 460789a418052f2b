//! The real compiler: every kernel, and a generated corpus of fused ones, to machine code for sm_75, sm_80 and sm_90,
//! without spilled registers. Needs libnvrtc (`tools/install-nvrtc.sh`), no GPU.
//!
//! The folder of the library is GPU_NVRTC_LIB, or where the script puts it. Where there is none the test says so and
//! passes, unless GPU_NVRTC=required.
use std::path::{Path, PathBuf};
use std::process::Command;

use rowmill_gpu::compile::{Floats, compile_to_cubin};
use rowmill_gpu::ops::aggregate::Aggregate;
use rowmill_gpu::ops::filter_aggregate::FilterAggregate;
use rowmill_gpu::ops::gather;
use rowmill_gpu::ops::join::JoinKind;
use rowmill_gpu::ops::top_k::{Metric, gpu};

use crate::{data, expressions, filter_aggregate, group_by, sort_join};

const ARCHITECTURES: [&str; 3] = ["sm_75", "sm_80", "sm_90"];

fn library_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("GPU_NVRTC_LIB") {
        return Some(folder.into());
    }
    let site = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib");
    let found = std::fs::read_dir(site).ok()?.filter_map(Result::ok);
    found.map(|python| python.path().join("site-packages/nvidia/cuda_nvrtc/lib")).find(|folder| folder.exists())
}

/// Runs `nvrtc::child` in a process in which the loader finds the real library instead of the emulator's.
#[test]
fn every_kernel_compiles_without_spills() {
    let Some(folder) = library_folder() else {
        assert!(std::env::var("GPU_NVRTC").as_deref() != Ok("required"), "NVRTC is required but not here");
        eprintln!("ignored: no libnvrtc here; tools/install-nvrtc.sh installs it");
        return;
    };
    if crate::emulator::sanitized() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nvrtc::child", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("kernels compiled"), "{text}");
    println!("{}", text.lines().find(|line| line.contains("kernels compiled")).unwrap());
}

/// Every source with a name.
fn sources() -> Vec<(String, String, Floats)> {
    let mut all = Vec::new();
    for (index, group) in expressions::total().chunks(6).enumerate() {
        let project = expressions::project(group.to_vec());
        all.push((format!("project {index}"), project.source().to_owned(), Floats::AsOnCpu));
    }
    for (index, project) in expressions::random_projects(6).into_iter().enumerate() {
        all.push((format!("random project {index}"), project.source().to_owned(), Floats::AsOnCpu));
    }
    for (index, group) in expressions::fallible().into_iter().enumerate() {
        let project = expressions::project(group);
        all.push((format!("fallible project {index}"), project.source().to_owned(), Floats::AsOnCpu));
    }
    // As many aggregates as a report has; a query with hundreds spills whatever one does.
    for (index, group) in filter_aggregate::exact_aggregates().chunks(6).enumerate() {
        for filter in [None, Some(filter_aggregate::filter())] {
            let query = FilterAggregate::try_new(data::schema(), filter, group).unwrap();
            all.push((format!("filter_aggregate {index}"), query.source().to_owned(), Floats::AsOnCpu));
        }
    }
    for keys in group_by::KEYS {
        for aggregates in [&[Aggregate::count_rows("n")][..], &group_by::aggregates()] {
            let query = group_by::query(keys, Some(filter_aggregate::filter()), aggregates);
            all.push((format!("group_by {keys:?}"), query.source().to_owned(), Floats::AsOnCpu));
        }
    }
    for (key, descending) in [("i32", false), ("f64", true), ("huge", false)] {
        for source in sort_join::sort(&[(key, descending, false)], None).sources() {
            all.push((format!("sort by {key}"), source, Floats::AsOnCpu));
        }
    }
    for source in sort_join::join(JoinKind::Left, 2).sources() {
        all.push(("join".into(), source, Floats::AsOnCpu));
    }
    all.push(("gather".into(), gather::gather_source(), Floats::AsOnCpu));
    for item in 0..3 {
        for metric in [Metric::Dot, Metric::L2] {
            for queries in [1, 2, 4, 8] {
                let name = format!("top_k item {item} {metric:?} {queries}");
                all.push((name, gpu::source(item, 768, metric, queries), Floats::Fused));
            }
        }
        all.push((format!("top_k item {item} odd"), gpu::source(item, 7, Metric::Dot, 8), Floats::Fused));
    }
    // While working on a kernel: only sources whose name holds this, with their registers.
    if let Ok(only) = std::env::var("GPU_NVRTC_ONLY") {
        all.retain(|(name, _, _)| name.contains(&only));
    }
    all
}

#[test]
#[ignore = "is run by every_kernel_compiles_without_spills, with the real library in the loader's path"]
fn child() {
    let sources = sources();
    let mut spilled = Vec::new();
    let started = std::time::Instant::now();
    for arch in ARCHITECTURES {
        for (name, source, floats) in &sources {
            let compiled =
                compile_to_cubin(source, arch, *floats, true).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(compiled.cubin.starts_with(b"\x7fELF"), "{name}: not machine code");
            assert!(compiled.log.contains("spill stores"), "{name}: ptxas did not report: {}", compiled.log);
            // A line names the kernel, a later one its spills, the next its registers.
            let mut kernel = "";
            for line in compiled.log.lines() {
                kernel =
                    line.split("entry function '").nth(1).and_then(|rest| rest.split('\'').next()).unwrap_or(kernel);
                if line.contains("spill stores") && !line.contains("0 bytes spill stores, 0 bytes spill loads") {
                    spilled.push(format!("{arch} {name}, {kernel}: {}", line.trim()));
                } else if std::env::var_os("GPU_NVRTC_ONLY").is_some() && line.contains("registers") {
                    println!("{arch} {name}, {kernel}: {}", line.trim());
                }
            }
        }
    }
    assert!(spilled.is_empty(), "registers are spilled:\n{}", spilled.join("\n"));
    let count = sources.len() * ARCHITECTURES.len();
    let each = started.elapsed().as_secs_f64() * 1000.0 / count as f64;
    println!("{count} kernels compiled, {each:.0} ms each");
}
