# common.bash - what the tests of the program share. Sourced; $1 is the program. Bash and coreutils alone.
set -u
ddpm=$(realpath "$1")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/ddpm-cli-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMP_NUM_THREADS=2
unset NO_COLOR

fail() {
    echo "FAILED: $*" >&2
    [[ -s $work/err ]] && { echo "--- standard error:" >&2; tail -n 20 "$work/err" >&2; }
    exit 1
}

# Limits on address space mean nothing to a program built with AddressSanitizer, which maps terabytes at its start.
is_sanitized() {
    grep -q __asan_init "$ddpm"
}

# expect CODE TEXT COMMAND...: the exit code, and TEXT (a fixed string, "" for any) in the one line of a failure, which also
# tells what is safe and what to do: at least three sentences.
expect() {
    local code=$1 text=$2 got
    shift 2
    "$@" >"$work/out" 2>"$work/err"
    got=$?
    [[ $got == "$code" ]] || fail "exit code $got instead of $code: $*"
    [[ $code == 0 ]] && return 0
    # progress and log lines may stand before it; the failure is the last line and there is only one
    local lines
    lines=$(grep -c '^ddpm[a-z ]*: ' "$work/err")
    [[ $lines == 1 ]] || fail "$lines lines of failure instead of 1: $*"
    tail -n 1 "$work/err" | grep -q '^ddpm[a-z ]*: .*\. .*\. .*\.$' ||
        fail "the line does not tell what, what is safe and what to do: $*"
    [[ -z $text ]] || tail -n 1 "$work/err" | grep -qF -- "$text" || fail "no \"$text\" in the message: $*"
}

# bytes COUNT OCTAL: that many equal bytes.
bytes() {
    head -c "$1" /dev/zero | tr '\0' "\\$2"
}

# make_idx FOLDER N: N grey images of 8x8, white above and black below or the other way round, and their labels 0 and 1.
make_idx() {
    mkdir -p "$1"
    local n=$2 hex
    hex=$(printf '%02x' "$n")
    {
        printf '\x00\x00\x08\x03\x00\x00\x00'"\\x$hex"'\x00\x00\x00\x08\x00\x00\x00\x08'
        for ((i = 0; i < n; i++)); do
            if ((i % 2)); then bytes 32 377; bytes 32 000; else bytes 32 000; bytes 32 377; fi
        done
    } >"$1/train-images-idx3-ubyte"
    {
        printf '\x00\x00\x08\x01\x00\x00\x00'"\\x$hex"
        for ((i = 0; i < n; i++)); do printf '\x00'"\\x0$((i % 2))" | tail -c 1; done
    } >"$1/train-labels-idx1-ubyte"
}

# make_config FILE: a network that trains 100 steps within seconds.
make_config() {
    cat >"$1" <<'YAML'
model:
  image_height: 8
  image_width: 8
  image_channels: 1
  channels: 16
  channel_mult: [1, 2]
  num_res_blocks: 1
  attention_resolutions: [4]
  norm_groups: 8
diffusion:
  schedule: cosine
  steps: 100
data:
  pack: pack.safetensors
  validation: 4
train:
  batch: 8
  steps: 100000
  lr: 2e-3
  warmup: 10
  ema: [0.95]
  save_every: 20
  preview_every: 0
  validate_every: 50
  log_every: 10
sample:
  sampler: ddim
  spacing: "10"
  batch: 4
YAML
}

# make_pack: pack.safetensors and tiny.yaml in the current folder.
make_pack() {
    make_idx idx 64
    make_config tiny.yaml
    "$ddpm" pack idx/train-images-idx3-ubyte -o pack.safetensors -q >"$work/out" 2>"$work/err" || fail "no pack"
}

# flip_byte FILE OFFSET: one bit of that byte changes.
flip_byte() {
    local old
    old=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    printf "\\x$(printf '%02x' $((old ^ 4)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# figure NAME FILE: the value of "NAME" in a JSON file written by the program.
figure() {
    sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" "$2" | head -n 1
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local until=$((SECONDS + $1))
    shift
    while ! "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || fail "waited in vain for: $*"
        sleep 0.05
    done
}

# less A B: A < B as numbers.
less() {
    [[ $1 != "$2" && $(printf '%s\n' "$1" "$2" | sort -g | head -n 1) == "$1" ]]
}

# train_to STEPS RUN ARGUMENT...: trains tiny.yaml in RUN up to that step in all.
train_to() {
    local steps=$1 run=$2
    shift 2
    "$ddpm" train tiny.yaml --run "$run" --max-steps "$steps" "$@" >"$work/out" 2>"$work/err" ||
        fail "training to step $steps in $run"
}

# newest RUN: its newest checkpoint.
newest() {
    ls "$1"/checkpoints/step-*.safetensors 2>/dev/null | sort | tail -n 1
}
