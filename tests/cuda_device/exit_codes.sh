# The program on a failing GPU, on the stand-in for one: its exit code, one line that tells what is safe and what to do, and no
# checkpoint of a failed device.
source "$(dirname "$0")/../cli/common.bash"
export DDPM_CACHE= CUDA_ON_CPU_GUARD=0
make_pack
settings=(--device cuda --set model.channel_mult='[1]' --set model.attention_resolutions='[0]' --set train.steps=3
    --set train.batch=2 --set train.micro_batch=0)

# failing N CODE STICKS: the environment of a run whose N-th call of CUDA gives CODE, and all after it where STICKS is 1
failing() {
    env CUDA_ON_CPU_FAIL_CALL="$1" CUDA_ON_CPU_FAIL_CODE="$2" CUDA_ON_CPU_FAIL_STICKS="$3" "${@:4}"
}

"$ddpm" train tiny.yaml --run good "${settings[@]}" >out 2>err || fail "a run on a device that is well"
cksum good/checkpoints/* >good.sum

for n in 5 40 1500; do # while the backend is made; the trainer; its plans
    rm -rf lost
    expect 79 "cuda:0" failing $n 700 1 "$ddpm" train tiny.yaml --run lost "${settings[@]}"
    [[ ! -d lost/checkpoints || -z $(ls lost/checkpoints) ]] || fail "call $n: saved from a lost device"
done
expect 71 "memory" failing 12 2 0 "$ddpm" train tiny.yaml --run refused "${settings[@]}"
expect 70 "cudaErrorInvalidValue" failing 12 1 0 "$ddpm" train tiny.yaml --run wrong "${settings[@]}"

# a run that goes on when its device is lost keeps the checkpoint that it had
for n in 40 1500; do
    expect 79 "cuda:0" failing $n 700 1 "$ddpm" train tiny.yaml --run good "${settings[@]}" --set train.steps=6 --override
    cksum good/checkpoints/* | cmp -s - good.sum || fail "call $n: other checkpoints than before"
done
expect 79 "cuda:0" failing 60 700 1 "$ddpm" sample good -n 2 -o samples --device cuda --set sample.spacing=4
[[ -z $(ls samples 2>/dev/null) ]] || fail "samples of a lost device: $(ls samples)"
exit 0
