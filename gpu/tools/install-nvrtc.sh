#!/bin/sh
# Installs NVIDIA's run-time compiler where the tests look for it: gpu/.venv (no GPU or driver is needed).
# Pinned: code made by newer compilers can be too new for installed drivers.
set -eu
cd "$(dirname "$0")/.."
python3 -m venv .venv
.venv/bin/pip install --quiet nvidia-cuda-nvrtc-cu12==12.9.86
ls .venv/lib/python3*/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12
