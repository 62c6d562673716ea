#!/usr/bin/env bash
# From a clean checkout to images, on Debian or Ubuntu:
#
#   ./quickstart.sh         installs what is missing, builds, packs Fashion-MNIST, trains, samples
#   ./quickstart.sh test    installs, builds and runs the proofs that continuous integration runs
#   ./quickstart.sh proofs  the longer ones: a CUDA build, bf16 samplers, every call of CUDA failing and every byte wrong in turn
#
# Run again, it goes on where it was. Everything it makes lies in build*/ and quickstart/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly build_packages=(gcc libc6-dev cmake ninja-build pkg-config
    libdnnl-dev libcyaml-dev libyaml-dev libjansson-dev libzip-dev zlib1g-dev libxxhash-dev libstb-dev
    libprotobuf-c-dev protobuf-c-compiler libisal-dev libwebp-dev libcmocka-dev)
readonly data_packages=(dataset-fashion-mnist)
readonly test_packages=(g++ python3 python3-venv)
readonly dataset=/usr/share/datasets/fashion-mnist
readonly pack=quickstart/fashion-mnist run=quickstart/run config=configs/fashion-mnist.yaml
# Seconds that the whole schedule may take at the speed measured: its learning rate must have come down for the images to be good, so
# a slow machine gets a shorter schedule. Training ends at the limit in any case. Between the two is room for a machine that
# turns slower while it runs, as shared ones do; and the last tenth of the schedule has next to no learning rate left.
readonly schedule_seconds=390 training_limit=8m least_steps=300

part=start
section() {
    part=$1
    printf '\n== %s [%d min %02d s]\n' "$1" $((SECONDS / 60)) $((SECONDS % 60))
}
finish() {
    local code=$?
    if ((code == 75)); then
        echo "stopped; run it again to go on" >&2
    elif ((code != 0)); then
        echo "quickstart: failed in \"$part\" with exit code $code after $SECONDS s" >&2
    fi
}
trap finish EXIT

# ---- packages ----

install_missing() {
    local missing=() name as_root=()
    if ! command -v dpkg-query > /dev/null; then
        echo "no dpkg here: install by hand what cmake names as missing"
        return
    fi
    for name in "$@"; do
        [[ $(dpkg-query -W -f '${Status}' "$name" 2> /dev/null) == "install ok installed" ]] || missing+=("$name")
    done
    if ((${#missing[@]} == 0)); then
        echo "all $# packages are installed"
        return
    fi
    echo "missing: ${missing[*]}"
    if ((EUID != 0)); then
        if ! command -v sudo > /dev/null; then
            echo "neither root nor sudo: have this done, then run again: apt-get install ${missing[*]}" >&2
            exit 77
        fi
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get -q update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "${missing[@]}"
}

# ---- build ----

# build PRESET [TARGET...]: configures once, with what stands in `options`, and builds.
build() {
    local preset=$1
    shift
    cmake --preset "$preset" "${options[@]}" > "build-$preset.log" 2>&1 || {
        cat "build-$preset.log"
        return 1
    }
    rm -f "build-$preset.log"
    cmake --build --preset "$preset" ${1:+--target "$@"}
}
options=()

has_gpu() {
    [[ -e /dev/nvidia0 || -e /dev/dxg ]]
}

# The folder of a CUDA toolkit: the system's, or wheels from PyPI. cuda_wheels.sh has the options.
toolkit() {
    local nvcc
    if nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2> /dev/null); then
        dirname "$(dirname "$(realpath "$nvcc")")"
        return
    fi
    [[ -x build-cuda-wheels/toolkit/bin/nvcc ]] || cmake/cuda_wheels.sh "$@" build-cuda-wheels >&2
    echo "$PWD/build-cuda-wheels/toolkit"
}

# ---- the way to images ----

# The configuration's steps, or fewer where they would take longer than schedule_seconds at the speed measured now; never so
# few that nothing is learned, for then the limit ends training. Exit code of `bench` where it fails or is interrupted.
affordable_steps() {
    local configured figures milliseconds
    configured=$(sed -n 's/^  steps: *//p' "$config")
    figures=$(build/ddpm bench train "$config" --quiet --repeats 60 --json -) || return
    milliseconds=$(sed -n 's/.*"step_median_ms": *\([0-9.]*\).*/\1/p' <<< "$figures")
    awk -v most="$configured" -v ms="$milliseconds" -v seconds="$schedule_seconds" -v least="$least_steps" \
        'BEGIN { n = int(1000 * seconds / ms); if (n < least) n = least; print n < most ? n : most }'
}

# Exit code 75: training stopped at --max-time with a checkpoint saved, which is enough to sample from. A signal also ends
# in 75; then the user wants to stop.
train() {
    local code=0 interrupted=0 from=$run/config.yaml steps
    local overrides=()
    trap interrupted=1 INT TERM
    if [[ ! -e $from ]]; then
        from=$config
        if steps=$(affordable_steps); then
            overrides=(--set "train.steps=$steps")
            echo "a schedule of $steps steps, by the speed of this machine"
        else
            code=$?
        fi
    fi
    if ((code == 0 && interrupted == 0)); then
        build/ddpm train "$from" "${overrides[@]}" --run "$run" --max-time "$training_limit" || code=$?
    fi
    trap - INT TERM
    # A signal that ended the measurement, or came between two commands: nothing is lost, as after one in training.
    if ((interrupted && (code == 0 || code > 128))); then code=75; fi
    if ((code == 75 && interrupted == 0)); then
        echo "training goes on from here when this script is run again"
    elif ((code != 0)); then
        exit "$code"
    fi
}

images() {
    section "packages"
    install_missing "${build_packages[@]}" "${data_packages[@]}"

    section "build"
    if has_gpu; then
        install_missing python3 python3-venv g++
        options=(-DDDPM_CUDA=ON "-DCUDAToolkit_ROOT=$(toolkit)")
    else
        options=(-DDDPM_CUDA=OFF)
    fi
    build release ddpm golden_check

    section "pack Fashion-MNIST"
    if [[ -e $pack ]]; then
        echo "$pack is there"
    else
        mkdir -p quickstart
        build/ddpm pack "$dataset/train-images-idx3-ubyte.gz" -o "$pack"
    fi

    section "train"
    train

    # Every run draws other images: the seed is the number of folders there already.
    section "sample 64 images"
    local seed=0
    while [[ -e quickstart/samples-$seed/grid.png ]]; do seed=$((seed + 1)); done
    build/ddpm sample "$run" -n 64 --seed "$seed" -o "quickstart/samples-$seed"

    section "done"
    echo "images      $PWD/quickstart/samples-$seed/grid.png"
    [[ -e quickstart/samples-$seed/animation.webp ]] && echo "animation   $PWD/quickstart/samples-$seed/animation.webp"
    echo "run folder  $PWD/$run"
    echo "more images: build/ddpm sample $run -n 1000 -o FOLDER"
}

# ---- every proof ----

# The sanitizers' runs are slower; what they find ends a test at once.
sanitizer_environment() {
    export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
    export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
}

# run_tests BUILD ARGUMENT...: ctest on all cores.
run_tests() {
    local folder=$1
    shift
    ctest --test-dir "$folder" -j "$(nproc)" --output-on-failure --no-tests=error "$@"
}

fuzz() {
    local needed=(clang libomp-dev)
    # what -fsanitize=fuzzer links with is a package of its own from LLVM 14 on, in some distributions
    ! apt-cache show libclang-rt-dev > /dev/null 2>&1 || needed+=(libclang-rt-dev)
    install_missing "${needed[@]}"
    if ! command -v clang > /dev/null; then
        echo "left out: no clang here"
        return
    fi
    cmake -S . -B build-fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_COMPILER=clang -DDDPM_FUZZ=ON \
        -DDDPM_CUDA=OFF -DDDPM_SANITIZE=fuzzer-no-link,address,undefined > build-fuzz.log 2>&1 || {
        cat build-fuzz.log
        return 1
    }
    rm -f build-fuzz.log
    cmake --build build-fuzz --target fuzz
    tests/fuzz/run.sh build-fuzz 6
}

# Debian 12 has oneDNN 2.x; newer systems have 3.x, whose interface differs. PyPI's wheel stands for those.
onednn3() {
    local venv=build-onednn3/venv version
    if ! { [[ -e $venv/include/dnnl.h ]] || { python3 -m venv "$venv" &&
        "$venv/bin/pip" -q --disable-pip-version-check install onednn-devel-cpu-gomp; }; } > build-onednn3.log 2>&1; then
        tail -3 build-onednn3.log
        rm -rf build-onednn3.log "$venv"
        echo "left out: no oneDNN 3.x from PyPI here"
        return
    fi
    rm -f build-onednn3.log
    cmake -S . -B build-onednn3 -G Ninja -DCMAKE_BUILD_TYPE=Release -DDDPM_CUDA=OFF -DDNNL_ROOT="$PWD/$venv" > /dev/null
    cmake --build build-onednn3 --target op_tests golden_check
    version=$(sed -n 's/^#define DNNL_VERSION_M[A-Z]* //p' "$venv"/include/oneapi/dnnl/dnnl_version.h | paste -sd.)
    echo "oneDNN $version"
    run_tests build-onednn3 -L '^(op|golden)$'
}

# The kernels' machine code for every GPU, and the kernels themselves, run by tests/cuda_on_cpu.
cuda() {
    section "kernels, machine code for every GPU"
    options=("-DCUDAToolkit_ROOT=$(toolkit --compiler)")
    tests/build/kernels.py --nvcc "$(toolkit)/bin/nvcc"

    # One build for both backends. Kernels and what is about them in three orders of a block's threads, the rest in one; also
    # with so few blocks that each goes round several times.
    section "tests under AddressSanitizer and UndefinedBehaviorSanitizer"
    build emulated
    run_tests build-emulated -L '^(unit|math|replay|faults|cli|cpu)$'
    section "the same of the CUDA backend on the CPU"
    CUDA_ON_CPU_SCHEDULE=forward run_tests build-emulated -L "$kernel_tests|^(cuda_device|cuda|golden)$"
    section "the same, reverse order, few blocks"
    CUDA_ON_CPU_MOST_BLOCKS=3 CUDA_ON_CPU_SCHEDULE=reverse run_tests build-emulated -L "$kernel_tests" -E "$twins"
    section "the same, random order"
    CUDA_ON_CPU_SCHEDULE=random run_tests build-emulated -L "$kernel_tests" -E "$twins"
    section "lines of kernels and of the device layer executed"
    tests/build/coverage.py build-emulated --least 95 --least-device 90 --list

    section "races in shared memory, few blocks"
    build races op_tests kernels_tests cuda_on_cpu_tests
    CUDA_ON_CPU_MOST_BLOCKS=3 run_tests build-races -L "$kernel_tests" -E "$twins|op/test_device$" # no kernel of its own there

    options=()
}
readonly kernel_tests='^(op|kernels|cuda_on_cpu)$'
readonly twins='op/test_(attention|conv2d|linear)$|test_far' # run as kernels/NAME too; offsets alone

# Beyond what continuous integration has time for.
proofs() {
    section "packages"
    install_missing "${build_packages[@]}" "${data_packages[@]}" "${test_packages[@]}"
    options=("-DCUDAToolkit_ROOT=$(toolkit)")

    # One architecture: `test` compiles the kernels for all of them.
    section "CUDA build on a machine without a GPU"
    cmake -S . -B build-cuda -G Ninja -DCMAKE_BUILD_TYPE=Release -DDDPM_CUDA=ON -DDDPM_CUDA_ARCHITECTURES=90-real \
        "${options[@]}" > /dev/null
    cmake --build build-cuda
    run_tests build-cuda -R 'cli/(device|plan_gpu|usage)'

    section "networks and samplers on the CPU's CUDA, f32 and bf16"
    cmake -S . -B build-plain -G Ninja -DCMAKE_BUILD_TYPE=Release -DDDPM_CUDA=EMULATED "${options[@]}" > /dev/null
    cmake --build build-plain --target golden_check test_every_call test_checkpoint_faults
    run_tests build-plain -L golden

    section "every call of CUDA, cuDNN and cuBLASLt failing in turn; \`test\` tries some of them"
    (cd tests && EVERY_CALL=1 ../build-plain/tests/test_every_call)

    section "every byte of a checkpoint wrong in turn"
    (cd tests && EVERY_BYTE=1 ../build-plain/tests/test_checkpoint_faults)

    section "all passed"
}

tests() {
    section "packages"
    install_missing "${build_packages[@]}" "${data_packages[@]}" "${test_packages[@]}"
    options=(-DDDPM_CUDA=OFF)

    section "build, warnings are errors"
    build release

    section "headers and symbols"
    bash tests/build/headers.sh build

    section "tests"
    run_tests build

    sanitizer_environment
    section "threaded parts under ThreadSanitizer"
    build tsan threads_tests
    run_tests build-tsan -L threads

    cuda

    section "fuzz targets"
    fuzz

    section "oneDNN 3.x"
    onednn3

    section "all passed"
}

case ${1:-} in
'') images ;;
test) tests ;;
proofs) proofs ;;
*)
    echo "usage: ./quickstart.sh [test|proofs]" >&2
    exit 64
    ;;
esac
