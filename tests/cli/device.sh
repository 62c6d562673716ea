# `--device` on a machine without a GPU, whatever the build: a GPU that is asked for is refused by one line that says what to do
# instead, before anything is made; a wrong name is a mistake in the command; without the option everything runs on the CPU.
source "$(dirname "$0")/common.bash"
export CUDA_VISIBLE_DEVICES= CUDA_ON_CPU_DEVICES=0 # a GPU here, or a build on the stand-in for one, is not seen
make_pack

refused() { # refused CODE TEXT NAME: by every command that takes a device
    local code=$1 text=$2 name=$3
    expect "$code" "$text" "$ddpm" train tiny.yaml --run new --device "$name"
    expect "$code" "$text" "$ddpm" sample run -n 4 -o new --device "$name"
    expect "$code" "$text" "$ddpm" plan tiny.yaml --device "$name"
    expect "$code" "$text" "$ddpm" bench train tiny.yaml --device "$name"
    expect "$code" "$text" "$ddpm" bench sample tiny.yaml --device "$name"
    expect "$code" "$text" "$ddpm" bench ops --device "$name"
    [[ ! -e new ]] || fail "--device $name: refused, and yet there is $(ls new)"
}

"$ddpm" train tiny.yaml --run run --set train.steps=2 --device cpu >out 2>err || fail "train --device cpu"
for name in cuda cuda:0 cuda:7; do
    refused 79 "cuda" "$name"
    tail -n 1 err | grep -q -- '--device cpu' || fail "--device $name: no word of --device cpu"
done
for name in gpu CUDA cuda: cuda:x cuda:-1 cuda:0x1 cuda0 cuda:12345 "cuda:1 " ""; do
    refused 64 "known are" "$name"
done

# what a run of the CPU had before is what it goes on with, with and without the option
"$ddpm" train tiny.yaml --run run --set train.steps=2 >out 2>err || fail "train without --device"
for option in "" "--device cpu"; do
    rm -rf images
    # shellcheck disable=SC2086
    "$ddpm" sample run -n 2 -o images $option --set sample.spacing=4 >out 2>err || fail "sample $option"
    cat images/*.npz | cksum >"sum${#option}"
done
cmp -s sum0 sum12 || fail "other samples without --device than with --device cpu"
"$ddpm" --version | grep -q '^  cpu: ' || fail "--version does not name the CPU"
"$ddpm" --version | grep -q '^  cuda: no' || fail "--version finds a GPU"
exit 0
