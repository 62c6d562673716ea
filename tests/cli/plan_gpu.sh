# `ddpm plan --gpu`: a step on a GPU that is not there, in builds with CUDA and without; names, files, and what cannot be.
source "$(dirname "$0")/common.bash"

make_config tiny.yaml
"$ddpm" plan tiny.yaml --gpu h200 --precision bf16 --json >h200.json 2>err || fail "plan for an H200: $(cat err)"
[[ $(figure gpu_memory_bytes h200.json) == 150110011392 ]] || fail "an H200 has $(figure gpu_memory_bytes h200.json) bytes"
grep -q '"op": "adamw"' h200.json || fail "no optimiser among the calls"
grep -q '"op": "conv2d_bwd_filter"' h200.json || fail "no gradients among the calls"
for name in gflop moved_gbyte predicted_ms blocks_bytes largest_batch memory_gbyte_per_s; do
    value=$(figure $name h200.json)
    [[ -n $value && $value != 0 && $value != null ]] || fail "$name is '$value'"
done

# names: every key of the JSON stands on the screen
"$ddpm" plan tiny.yaml --gpu h200 --precision bf16 --no-engines >screen 2>err || fail "plan on the screen"
"$ddpm" plan tiny.yaml --gpu h200 --precision bf16 --no-engines --json >names.json || fail "plan without engines"
sed -n 's/^ *"\([a-z0-9_]*\)":.*/\1/p' names.json | sort -u | while read -r name; do
    grep -qw -- "$name" screen || fail "$name is in the JSON and not on the screen"
done

# published: ddpm-cifar10 trains 3 x 6.22 GMAC an image; each weight is read and written by the optimiser
"$ddpm" plan "$root/configs/ddpm-cifar10.yaml" --gpu h100 --batch 8 --no-engines --json >cifar.json 2>err || fail "plan of CIFAR"
case $(figure gflop cifar.json) in
29[6-9].* | 30[0-2].*) ;;
*) fail "8 images of CIFAR train with $(figure gflop cifar.json) GFLOP, not 299" ;;
esac
"$ddpm" plan "$root/configs/ddpm-cifar10.yaml" --gpu h100 --batch 16 --no-engines --json >cifar16.json || fail "batch 16"
a=$(figure blocks_bytes cifar.json) b=$(figure blocks_bytes cifar16.json)
((b > a && b < 2 * a)) || fail "blocks: $a for 8 images, $b for 16: weights do not grow, activations do"

# kernels: counted where the build has CUDA, else said to be unknown
kernels=$(figure kernels cifar.json)
if grep -q '"kernels": "unknown"' cifar.json; then
    grep -q 'no CUDA\|not in this build' cifar.json || fail "unknown kernels without a reason"
else
    ((kernels > 300 && kernels < 3000)) || fail "$kernels kernels a step"
fi

# memory: blocks and what lies beside them make up the whole
sum=0
for name in blocks_bytes workspace_bytes tuning_bytes staging_bytes; do
    sum=$((sum + $(figure $name h200.json)))
done
[[ $sum == "$(figure total_bytes h200.json)" ]] || fail "parts of memory add up to $sum, not $(figure total_bytes h200.json)"

# sums that engines leave: 64x64 pixels are more than GroupNorm holds. 9.26 has engines for them, whose order of additions varies
if grep -q "stand-in" <("$ddpm" --version); then
    large=(tiny.yaml --gpu h200 --precision bf16 --set model.image_height=64 --set model.image_width=64
        --set "model.attention_resolutions=[0]" --batch 2 --json)
    CUDA_ON_CPU_CUDNN=92600 "$ddpm" plan "${large[@]}" >sums.json 2>err || fail "plan with sums: $(cat err)"
    CUDA_ON_CPU_CUDNN=92600 "$ddpm" plan "${large[@]}" --deterministic >ordered.json 2>err || fail "plan without sums: $(cat err)"
    norms() { # norms OP FILE: kernels of each different call
        sed -n "/\"op\": \"$1\"/,/}/s/.*\"kernels\": \([0-9]*\).*/\1/p" "$2" | sort -u | xargs
    }
    [[ $(norms groupnorm ordered.json) == "1 3" ]] || fail "GroupNorm takes $(norms groupnorm ordered.json) kernels"
    [[ $(norms groupnorm sums.json) == "1 2 3" ]] || # 3: of conv_in, whose one channel has no such engine
        fail "GroupNorm takes $(norms groupnorm sums.json) kernels with sums"
    [[ $(norms groupnorm_bwd ordered.json) == "2 4" ]] || fail "its gradient takes $(norms groupnorm_bwd ordered.json)"
    [[ $(norms groupnorm_bwd sums.json) == "2 3 4" ]] || fail "its gradient takes $(norms groupnorm_bwd sums.json) with sums"
    [[ $(figure tuning_bytes sums.json) == 67108864 && $(figure tuning_bytes ordered.json) == 0 ]] || fail "memory for timing engines"
fi

# a file of properties is as good as a name
cp "$root/devices/a100.json" mine.json
"$ddpm" plan tiny.yaml --gpu ./mine.json --no-engines --json >mine.out 2>err || fail "plan by a file"
"$ddpm" plan tiny.yaml --gpu a100 --no-engines --json >named.out || fail "plan by a name"
cmp -s mine.out named.out || fail "a file and a name of the same GPU differ"

# what cannot be
expect 64 "h200" "$ddpm" plan tiny.yaml --gpu v100
expect 64 "precision" "$ddpm" plan tiny.yaml --gpu h100 --precision fp16
expect 66 "nowhere.json" "$ddpm" plan tiny.yaml --gpu nowhere.json
echo '{"deviceName": "x"' >torn.json
expect 65 "torn.json" "$ddpm" plan tiny.yaml --gpu torn.json
echo '{"deviceName": "x"}' >empty.json
expect 65 "multiProcessorCount" "$ddpm" plan tiny.yaml --gpu empty.json
if ! [[ -e /dev/nvidia0 ]] && ! grep -q "stand-in" <("$ddpm" --version); then
    "$ddpm" plan --write-properties out.json >out 2>err
    [[ $? == 79 ]] || fail "properties of a GPU that is not there: $(cat err)"
    [[ ! -e out.json ]] || fail "a file of properties without a GPU"
fi
exit 0
