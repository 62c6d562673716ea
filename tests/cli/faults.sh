# Bad input, bad disks, bad luck: the exit code of each, one line that tells what is safe and what to do, and nothing lost.
source "$(dirname "$0")/common.bash"
export GCOV_PREFIX=$PWD/counts # what a build that counts lines has counted is too much for the limits on files below
make_pack
train_to 40 run
cp -r run kept

# ---- inputs that are missing, damaged or foreign ----
expect 66 "nowhere" "$ddpm" train nowhere.yaml --run new
expect 66 "nowhere" "$ddpm" train tiny.yaml --run new --set data.pack=nowhere.safetensors
expect 66 "nowhere" "$ddpm" sample nowhere -n 4 -o new
expect 66 "nowhere" "$ddpm" merge nowhere -o new.npz
expect 66 "nowhere" "$ddpm" pack nowhere -o new.safetensors
expect 66 "nowhere" "$ddpm" info nowhere

cp pack.safetensors torn.safetensors
flip_byte torn.safetensors $(($(stat -c %s torn.safetensors) - 100))
expect 65 "torn.safetensors" "$ddpm" train tiny.yaml --run new --set data.pack=torn.safetensors
head -c 1000 pack.safetensors >short.safetensors
expect 65 "short.safetensors" "$ddpm" train tiny.yaml --run new --set data.pack=short.safetensors
expect 65 "pack" "$ddpm" train tiny.yaml --run new --set data.pack="$(newest run)"
expect 65 "" "$ddpm" sample pack.safetensors -n 4 -o new
printf '\200\002}q\000.' >model.pt
expect 65 "pickle" "$ddpm" sample model.pt -n 4 -o new
expect 65 "pickle" "$ddpm" info model.pt
{ bytes 8 377; printf '{}'; } >huge.safetensors
expect 65 "huge.safetensors" "$ddpm" info huge.safetensors
: >empty
expect 65 "empty" "$ddpm" info empty
mkfifo pipe
expect 65 "pipe" "$ddpm" info pipe
expect 65 "" "$ddpm" info /dev/zero
mkdir nothing
expect 65 "nothing" "$ddpm" info nothing

# every byte of the newest checkpoint counts: the older one is taken, and named as such
cp -r kept hurt
flip_byte "$(newest hurt)" 30000
train_to 45 hurt
grep -q 'step-00000040' "$work/err" || fail "nobody says that the newest checkpoint was skipped"
cp -r kept ruined
for f in ruined/checkpoints/*.safetensors; do flip_byte "$f" 30000; done
expect 65 "" "$ddpm" train tiny.yaml --run ruined --max-steps 45
expect 65 "" "$ddpm" sample ruined -n 4 -o new

# ---- configurations ----
expect 78 "batch" "$ddpm" train tiny.yaml --run new --set train.bacth=4
expect 78 "image_height" "$ddpm" train tiny.yaml --run new --set model.image_height=7
expect 78 "" "$ddpm" train tiny.yaml --run new --set model.image_height=16 --set model.image_width=16
expect 78 "model.channels" "$ddpm" train tiny.yaml --run run --set model.channels=32
expect 78 "train.lr" "$ddpm" train tiny.yaml --run run --set train.lr=0.5
expect 78 "spacing" "$ddpm" sample run -n 4 -o new --set sample.spacing=1000
expect 78 "micro_batch" "$ddpm" train tiny.yaml --run new --set train.micro_batch=3
expect 79 "cuda" "$ddpm" train tiny.yaml --run new --device cuda
expect 79 "cuda" "$ddpm" sample run -n 4 -o new --device cuda:1
expect 64 "" "$ddpm" sample run -n 4 -o new --shard 3/3
expect 64 "" "$ddpm" sample run -n -4 -o new

# ---- outputs ----
: >file
expect 73 "file" "$ddpm" train tiny.yaml --run file
expect 73 "file" "$ddpm" train tiny.yaml --run file/run
expect 73 "file" "$ddpm" sample run -n 4 -o file
expect 73 "file" "$ddpm" pack idx/train-images-idx3-ubyte -o file/p.safetensors
expect 73 "file" "$ddpm" bench ops --batch 1 --repeats 1 --warmup 0 --json file/x.json
expect 73 "" "$ddpm" train tiny.yaml --run /proc/ddpm-run
[[ ! -s file ]] || fail "a file in the way was written to"
"$ddpm" sample run -n 4 -o job --seed 1 >out 2>err || fail "sample"
expect 73 "" "$ddpm" sample run -n 4 -o job --seed 2
"$ddpm" sample run -n 6 -o some --shard 0/2 >out 2>err || fail "shard"
expect 66 "00001-of-00002" "$ddpm" merge some -o new.npz
[[ ! -e new && ! -e new.npz && ! -e new.safetensors ]] || [[ -z $(find new -name '*.safetensors') ]] ||
    fail "a failed command left output"

# a file-size limit, as a full disk: 74, the old checkpoints whole, no temporary file
(ulimit -f 60; expect 74 "" "$ddpm" train tiny.yaml --run run --max-steps 60) || exit 1
expect 0 "" "$ddpm" info --verify run
[[ -z $(find run -name '*.tmp') ]] || fail "left over: $(find run -name '*.tmp')"
for f in kept/checkpoints/*; do
    cmp "$f" "run/checkpoints/${f##*/}" || fail "$f was touched by the save that failed"
done
train_to 60 run
mkdir disk
if mount -t tmpfs -o size=400k ddpm-test disk 2>/dev/null; then
    trap 'umount "$work/disk"; rm -rf "$work"' EXIT
    expect 74 "" "$ddpm" train tiny.yaml --run disk/run --max-steps 200
    [[ -z $(find disk -name '*.tmp') ]] || fail "left over: $(find disk -name '*.tmp')"
fi

# ---- memory ----
is_sanitized || (ulimit -v 1500000; expect 71 "" "$ddpm" train tiny.yaml --run new --set train.batch=65536) || exit 1

# ---- names ----
odd=$'odd %s "name"\n'
train_to 5 "$odd"
"$ddpm" sample "$odd" -n 2 -o "$odd samples" >out 2>err || fail "sample into a folder of odd name"
expect 0 "" "$ddpm" info --verify "$odd"

# ---- permissions, which do not bind root ----
if [[ $(id -u) != 0 ]]; then
    mkdir closed
    chmod 500 closed
    expect 77 "closed" "$ddpm" train tiny.yaml --run closed/run
    cp pack.safetensors secret.safetensors
    chmod 000 secret.safetensors
    expect 77 "secret" "$ddpm" train tiny.yaml --run new --set data.pack=secret.safetensors
    expect 77 "secret" "$ddpm" info secret.safetensors
fi
exit 0
