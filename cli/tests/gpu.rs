//! Work of class `gpu`: with an emulated device (`gpu/emulator`, in the place of the driver) and without one, the results
//! are equal.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::{Answer, Scratch, checkout};

/// The folder that holds the emulator's libraries.
fn libraries() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let sources = checkout().join("gpu/emulator");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu-emulator-libraries");
        std::fs::create_dir_all(&folder).unwrap();
        let played = [("driver.cpp", "libcuda.so"), ("nvrtc.cpp", "libnvrtc.so"), ("cublas.cpp", "libcublas.so")];
        for (source, name) in played {
            let (from, to) = (sources.join(source), folder.join(name));
            let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
            if modified(&to) >= modified(&from) {
                continue;
            }
            let mine = folder.join(format!("{name}.{}", std::process::id()));
            let status = Command::new("g++")
                .args(["-std=c++17", "-O1", "-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"])
                .args([&mine, &from])
                .arg("-ldl")
                .status()
                .expect("the emulator's tests need g++");
            assert!(status.success());
            std::fs::rename(mine, to).unwrap();
        }
        folder
    })
}

/// The command with an emulated device.
fn emulated(scratch: &Scratch, arguments: &[&str]) -> Answer {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu-emulator-kernels");
    let mut command = scratch.command();
    command
        .env("LD_LIBRARY_PATH", libraries())
        .env("GPU_EMU_INCLUDE", checkout().join("gpu/emulator"))
        .env("GPU_EMU_CACHE", cache);
    command.args(arguments).output().unwrap().into()
}

const FLOW: &str = "rowmill: 1
name: flow
sources:
  numbers: {range: {start: 0, end: 20000}}
steps:
  sums:
    sql: >
      SELECT value % 13 AS k, count(*) AS n, sum(value) AS s, min(value * 0.5) AS low
      FROM numbers WHERE value % 3 <> 1 GROUP BY value % 13
    resources: {class: gpu}
  ranked:
    sql: SELECT s, k FROM sums WHERE n > 10 ORDER BY s DESC
    resources: {class: gpu}
sinks:
  out: {from: ranked, path: out.csv}
";

const ALWAYS: &[&str] = &["--option", "gpu.use=always"];

#[test]
fn results_are_equal_with_a_device_and_without() {
    let scratch = Scratch::new();
    scratch.write("flow.yaml", FLOW);
    let plain = scratch.rowmill(&["run", "flow.yaml"]).ok();
    assert!(plain.err.contains("runs on the CPU, with equal results"), "{}", plain.err);
    let expected = std::fs::read_to_string(scratch.path("out.csv")).unwrap();
    assert_eq!(expected.lines().count(), 14);
    emulated(&scratch, &[&["run", "flow.yaml"], ALWAYS].concat()).ok();
    assert_eq!(std::fs::read_to_string(scratch.path("out.csv")).unwrap(), expected);
}

#[test]
fn explain_says_why_a_node_was_taken_or_left() {
    let scratch = Scratch::new();
    scratch.write("flow.yaml", FLOW);
    let text = scratch.rowmill(&["explain", "flow.yaml"]).ok().out;
    assert!(text.contains("gpu: everything runs on the CPU: no GPU is usable here"), "{text}");
    let text = emulated(&scratch, &[&["explain", "flow.yaml"], ALWAYS].concat()).ok().out;
    assert!(text.contains("GpuGroupByExec") && text.contains("GpuSortExec"), "{text}");
    assert!(text.contains("gpu: SortExec: taken, `gpu.use` is `always`"), "{text}");
    // By itself the table decides. Here is none yet, which is said where one looks for it and where one does not.
    let unmeasured = emulated(&scratch, &["explain", "flow.yaml"]).ok();
    assert!(!unmeasured.out.contains("GpuSortExec"), "{}", unmeasured.out);
    assert!(unmeasured.out.contains("sort was not measured on this GPU"), "{}", unmeasured.out);
    assert!(unmeasured.err.contains("everything stays on the CPU: `rowmill gpu bench --save`"), "{}", unmeasured.err);
    let json = emulated(&scratch, &[&["explain", "flow.yaml", "--format", "json"], ALWAYS].concat()).ok().out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let stages = json["stages"].as_array().unwrap();
    assert!(stages.iter().any(|stage| stage["notes"].as_array().is_some_and(|notes| notes.len() > 1)), "{json}");
}

#[test]
fn a_device_that_is_required_and_missing_is_an_error() {
    let scratch = Scratch::new();
    scratch.write("flow.yaml", FLOW);
    for command in ["run", "explain"] {
        scratch
            .rowmill(&[command, "flow.yaml", "--option", "gpu.use=required"])
            .fails(75, &["RM0710", "step `ranked`", "`gpu.use` is `required`", "no GPU is usable here"]);
    }
    assert!(!scratch.path("out.csv").exists());
    emulated(&scratch, &["run", "flow.yaml", "--option", "gpu.use=required"]).ok();
}

#[test]
fn the_device_is_shown_and_measured() {
    let scratch = Scratch::new();
    let none = scratch.rowmill(&["gpu", "info"]).ok().out;
    assert!(none.contains("no GPU is usable here"), "{none}");
    scratch.rowmill(&["gpu", "bench"]).fails(75, &["RM0710", "no GPU is usable here"]);
    let info = emulated(&scratch, &["gpu", "info", "--output", "json"]).ok().out;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["usable"], &info["name"]), (&true.into(), &"CPU emulator".into()));
    assert_eq!(info["cublas"], true);
    let shown = emulated(&scratch, &["gpu", "info"]).ok().out;
    assert!(shown.contains("everything stays on the CPU; `rowmill gpu bench --save` measures one"), "{shown}");
    let bench = emulated(&scratch, &["gpu", "bench", "--rows", "2000,300", "--save"]).ok().out;
    for operator in ["filter_aggregate", "group_by", "sort", "join", "top_k"] {
        assert_eq!(bench.matches(operator).count(), 2, "{bench}");
    }
    assert!(bench.contains("offload.json"), "{bench}");
    // From now on decisions go by what was measured: an emulated device is slower than the CPU.
    scratch.write("flow.yaml", FLOW);
    let text = emulated(&scratch, &["explain", "flow.yaml"]).ok().out;
    assert!(text.contains("by the measured table"), "{text}");
    scratch.write(".rowmill/gpu/offload.json", "{}");
    let warned = emulated(&scratch, &["explain", "flow.yaml"]).ok();
    assert!(warned.err.contains("is no offload table"), "{}", warned.err);
}

/// The similarity search as a step, over a corpus beside the workflow and not beside the process.
#[test]
fn a_gpu_step_finds_the_nearest() {
    let scratch = Scratch::new();
    let vectors = "SELECT value AS id, make_array(cos(value * 0.1), sin(value * 0.1)) AS e FROM numbers";
    scratch.write("flows/make.yaml", format!(
        "rowmill: 1\nname: make\nsources: {{numbers: {{range: {{start: 0, end: 30}}}}}}\nsteps: {{docs: {{sql: \"{vectors}\"}}}}\nsinks: {{docs: {{from: docs, path: docs.parquet}}}}\n"
    ));
    scratch.rowmill(&["run", "flows/make.yaml"]).ok();
    scratch.write("flows/find.yaml", format!(
        "rowmill: 1\nname: find\nsources: {{numbers: {{range: {{start: 3, end: 5}}}}}}\nsteps:\n  queries: {{sql: \"{}\"}}\n  near:\n    gpu: {{from: queries, top_k: {{column: e, corpus: docs.parquet, id: id, k: 3, metric: l2}}}}\n  shown: {{sql: \"SELECT q, neighbour, rank, score < 0.11 AS close FROM near\"}}\nsinks: {{out: {{from: shown, path: ../out.csv}}}}\n",
        vectors.replace("AS id", "AS q")
    ));
    let rows = |answer: Answer| {
        answer.ok();
        let text = std::fs::read_to_string(scratch.path("out.csv")).unwrap();
        let mut rows: Vec<String> = text.lines().map(str::to_owned).collect();
        rows.sort();
        rows
    };
    let plain = rows(scratch.rowmill(&["run", "flows/find.yaml"]));
    assert_eq!(plain.len(), 7, "{plain:?}");
    assert!(plain.contains(&"3,3,1,true".to_owned()) && plain.contains(&"4,4,1,true".to_owned()), "{plain:?}");
    assert_eq!(rows(emulated(&scratch, &[&["run", "flows/find.yaml"], ALWAYS].concat())), plain);
    let text = std::fs::read_to_string(scratch.path("flows/find.yaml")).unwrap();
    scratch.write("flows/find.yaml", text.replace("docs.parquet", "dox.parquet"));
    scratch.rowmill(&["run", "flows/find.yaml"]).fails(1, &["RM0412", "dox.parquet"]);
}
