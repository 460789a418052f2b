#!/bin/sh
# Installs ONNX Runtime (CPU) where the tests look for it: executors/model/.venv. Pinned.
set -eu
cd "$(dirname "$0")/.."
python3 -m venv .venv
.venv/bin/pip install --quiet onnxruntime==1.31.1 onnx==1.23.2
ls .venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*
