//! The carried binary: finds the emulated device and passes, and says plainly when there is none.
use std::process::Command;

use crate::emulator;

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rowmill-gpu-check"))
}

#[test]
fn it_checks_and_measures_every_operator() {
    let _alone = emulator::alone();
    let folders = emulator::LIBRARIES
        .map(|(source, name)| emulator::library(source, name).parent().unwrap().display().to_string());
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = command()
        .args(["--rows", "300", "--json"])
        .arg(file.path())
        .env("LD_LIBRARY_PATH", folders.join(":"))
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(report["device"], "CPU emulator");
    assert_eq!(report["checks"].as_array().unwrap().len(), 6);
    assert!(report["measures"]["measures"].as_array().unwrap().len() >= 10, "{report}");
}

#[test]
fn without_a_device_it_says_so() {
    if rowmill_gpu::probe::nvrtc_version().is_ok() {
        eprintln!("ignored: this process or machine has a device");
        return;
    }
    let output = command().output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{text}");
    assert!(text.contains("no GPU is usable here") && text.contains("nothing was checked"), "{text}");
    assert_eq!(command().arg("--frobnicate").output().unwrap().status.code(), Some(2));
}

/// Stripped it is small enough to be carried anywhere, and holds nothing but this crate and Arrow.
#[test]
fn it_is_small_and_holds_no_query_engine() {
    let folder = tempfile::tempdir().unwrap();
    let stripped = folder.path().join("rowmill-gpu-check");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(command().get_program()).status();
    assert!(status.expect("strip comes with g++").success());
    let bytes = std::fs::read(&stripped).unwrap();
    assert!(bytes.len() < 32 << 20, "{} MiB", bytes.len() >> 20);
    // ELF, 64 bits, little-endian; machine 62 is x86-64.
    assert_eq!((&bytes[..6], &bytes[18..20]), (&b"\x7fELF\x02\x01"[..], &[62, 0][..]));
    // Paths of sources stand in messages of panics.
    assert!(!bytes.windows(10).any(|part| part == b"datafusion"));
}
