#!/usr/bin/env bash
# Everything there is to prove on a machine with a GPU, and the figures of ddpm and of PyTorch on it, in at most nine minutes.
#
#   tests/gpu.sh                       every part, in order; results in build-gpu/results
#   tests/gpu.sh --list                the parts and their seconds
#   tests/gpu.sh --part build,golden   some of them
#   tests/gpu.sh --stand-in --build build-emulated    without a GPU: the script itself, on a build with DDPM_CUDA=EMULATED
#
# It needs nvcc, CMake, Ninja and Python 3; neither a network nor root. Where the packages of quickstart.sh are missing it takes
# build-gpu-carry, which tests/gpu/carry.sh made on a machine that has them. A part that fails or takes too long does not stop
# the next; exit 1 when one did. tests/gpu/README.md says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec python3 tests/gpu/run.py "$@"
