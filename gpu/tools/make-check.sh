#!/bin/sh
# Builds the binary that is carried to a machine with a GPU: target/rowmill-gpu-check, stripped. It needs there the
# driver and NVRTC (`pip install nvidia-cuda-nvrtc-cu12==12.9.86`, its lib folder on LD_LIBRARY_PATH), and finds cuBLAS
# if it is there. Then, there:
#   ./rowmill-gpu-check --json report.json
#   compute-sanitizer --tool memcheck ./rowmill-gpu-check --check-only
#   compute-sanitizer --tool racecheck ./rowmill-gpu-check --check-only
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
cargo build --release --locked -p rowmill-gpu --bin rowmill-gpu-check
strip -o "$target/rowmill-gpu-check" "$target/release/rowmill-gpu-check"
ls -l "$target/rowmill-gpu-check"
