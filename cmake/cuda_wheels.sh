#!/usr/bin/env bash
# The CUDA toolkit from PyPI, for a machine that has a driver and nothing else (or not even that, to compile):
#
#   cmake/cuda_wheels.sh [--compiler] [FOLDER]      default build-cuda-wheels; about 2 GB installed, with --compiler 0.3 GB:
#                                                   enough to compile kernels/, without cuBLAS and cuDNN
#   cmake --preset release -DCUDAToolkit_ROOT=FOLDER/toolkit
#
# The wheels carry headers, compiler and libraries, but no unversioned libNAME.so, for which CMake looks; the folder
# `toolkit` gets the links. Wheels of the minor version of the driver's CUDA or older run on it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=("nvidia-cuda-nvcc>=13,<14" "nvidia-cuda-crt>=13,<14" "nvidia-nvvm>=13,<14" "nvidia-cuda-runtime>=13,<14"
    "nvidia-nvtx>=13,<14")
if [[ ${1:-} == --compiler ]]; then
    shift
else
    wheels+=("nvidia-cuda-cccl>=13,<14" "nvidia-cublas>=13,<14" "nvidia-cudnn-cu13>=9.19,<10")
fi
folder=$(realpath -m "${1:-build-cuda-wheels}")

if [[ ! -x $folder/venv/bin/pip ]]; then
    python3 -m venv "$folder/venv"
fi
"$folder/venv/bin/pip" -q --disable-pip-version-check install "${wheels[@]}"
site=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

toolkit=$folder/toolkit
rm -rf "$toolkit"
mkdir -p "$toolkit/lib64"
for part in bin include nvvm; do
    ln -s "$site/nvidia/cu13/$part" "$toolkit/$part"
done
ln -s lib64 "$toolkit/lib"
for library in "$site"/nvidia/cu13/lib/* "$site"/nvidia/cudnn/lib/*; do
    [[ -f $library ]] || continue
    name=$(basename "$library")
    ln -sf "$library" "$toolkit/lib64/$name"
    [[ $name == *.so.* ]] && ln -sf "$library" "$toolkit/lib64/${name%%.so.*}.so"
done
if [[ -d $site/nvidia/cudnn ]]; then
    mkdir -p "$toolkit/cudnn"
    ln -s "$site/nvidia/cudnn/include" "$toolkit/cudnn/include"
    ln -s ../lib64 "$toolkit/cudnn/lib"
fi
"$toolkit/bin/nvcc" --version | tail -n 2
echo "installed: -DCUDAToolkit_ROOT=$toolkit"
