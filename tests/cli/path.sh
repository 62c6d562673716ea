# The user's path: idx -> pack -> train -> resume -> sample -> merge, and `info` on everything it makes.
source "$(dirname "$0")/common.bash"
make_pack

# trains, and the loss falls
train_to 60 run
losses=$(sed -n 's/.*"loss": *\([0-9.e+-]*\).*/\1/p' run/metrics.jsonl)
first=$(head -n 1 <<<"$losses") last=$(tail -n 1 <<<"$losses")
less "$last" "$first" || fail "loss went from $first to $last in 60 steps"
[[ $(newest run) == *step-00000060.safetensors ]] || fail "no checkpoint of step 60: $(ls run/checkpoints)"
[[ -s run/config.yaml ]] || fail "no config.yaml in the run"

# resumes: to the same bytes as in one go
train_to 20 parts
train_to 60 parts
cmp run/checkpoints/step-00000060.safetensors parts/checkpoints/step-00000060.safetensors ||
    fail "20 steps and 40 more are not the same as 60"
# asked for what is done already, nothing happens
cp run/checkpoints/step-00000060.safetensors before
train_to 60 run
cmp before run/checkpoints/step-00000060.safetensors || fail "a finished run was changed"

# samples
"$ddpm" sample run -n 10 -o one --seed 7 >out 2>err || fail "sample"
[[ -s one/samples_10x8x8x1.npz ]] || fail "no npz: $(ls one)"
[[ $(head -c 4 one/grid.png | tail -c 3) == PNG ]] || fail "no PNG grid"
"$ddpm" --version >version
if grep -q 'WebP animation: yes' version; then
    [[ $(head -c 4 one/animation.webp) == RIFF ]] || fail "no animation: $(ls one)"
fi
for k in 2 0 1; do
    "$ddpm" sample run -n 10 -o three --seed 7 --shard "$k/3" >out 2>err || fail "shard $k"
done
"$ddpm" merge three -o merged.npz >out 2>err || fail "merge"
cmp merged.npz one/samples_10x8x8x1.npz || fail "three shards merged are not the one shard's bytes"
"$ddpm" sample "$(newest run)" -n 10 -o again --seed 7 >out 2>err || fail "sample of a checkpoint file"
cmp again/samples_10x8x8x1.npz one/samples_10x8x8x1.npz || fail "the same seed gives other samples"
"$ddpm" sample run -n 10 -o other --seed 8 >out 2>err || fail "sample by another seed"
cmp -s other/samples_10x8x8x1.npz one/samples_10x8x8x1.npz && fail "another seed gives the same samples"

# info knows all of it, and --verify finds it whole
told() { # told KIND PATH
    "$ddpm" info --verify --json "$2" >info.json 2>err || fail "info --verify $2"
    [[ $(figure kind info.json) == "$1"* ]] || fail "$2 is told to be \"$(figure kind info.json)\""
}
told "run" run
[[ $(figure step info.json) == 60 ]] || fail "info tells step $(figure step info.json)"
grep -q '"last_metrics"' info.json || fail "info tells no metrics of the run"
told "checkpoint" "$(newest run)"
[[ $(figure step info.json) == 60 && $(figure image info.json) == 8x8x1 ]] || fail "info of the checkpoint"
told "pack" pack.safetensors
[[ $(figure images info.json) == 64 ]] || fail "info tells $(figure images info.json) images"
told "samples" one
told "samples" three
told "samples" merged.npz
told "PNG picture" one/grid.png
told "configuration" run/config.yaml
told "metrics" run/metrics.jsonl
told "idx images" idx/train-images-idx3-ubyte
told "idx labels" idx/train-labels-idx1-ubyte

# one flipped bit is found
broken() { # broken FILE: a bit in its middle
    cp "$1" copy."${1##*.}"
    flip_byte copy."${1##*.}" $(($(stat -c %s "$1") / 2))
    expect 65 "copy." "$ddpm" info --verify copy."${1##*.}"
}
broken "$(newest run)"
broken pack.safetensors
broken merged.npz
broken one/grid.png
# in a folder, too
flip_byte "$(newest parts)" 20000
expect 65 "step-00000060" "$ddpm" info --verify parts

# figures may lie in the folder that they are about
"$ddpm" sample run -n 2 -o figures --json figures/figures.json >out 2>err || fail "figures beside the samples"
[[ $(figure sampled figures/figures.json) == 2 ]] || fail "no figures beside the samples"
exit 0
