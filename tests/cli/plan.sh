# `ddpm plan`: the published sizes, the same names on screen and in JSON, and configurations that cannot be.
source "$(dirname "$0")/common.bash"

"$ddpm" plan "$root/configs/ddpm-cifar10.yaml" --batch 8 --json >cifar.json 2>err || fail "plan of CIFAR"
[[ $(figure parameters cifar.json) == 35746307 ]] || fail "CIFAR has $(figure parameters cifar.json) parameters"
case $(figure gmac_per_image cifar.json) in
6.21[5-9]* | 6.22[0-4]*) ;;
*) fail "CIFAR has $(figure gmac_per_image cifar.json) GMAC per image, not 6.22" ;;
esac
"$ddpm" plan "$root/configs/ddpm-256.yaml" --batch 1 --json >large.json 2>err || fail "plan of 256"
[[ $(figure parameters large.json) == 113673219 ]] || fail "256 has $(figure parameters large.json) parameters"
"$ddpm" plan "$root/configs/fashion-mnist.yaml" --batch 1 >out 2>err || fail "plan of Fashion-MNIST"

# names: every key of the JSON stands on the screen
"$ddpm" plan "$root/configs/ddpm-cifar10.yaml" --batch 8 >screen 2>err || fail "plan"
sed -n 's/^ *"\([a-z0-9_]*\)":.*/\1/p' cifar.json | sort -u >names
[[ $(wc -l <names) -ge 15 ]] || fail "only $(wc -l <names) names in the JSON"
while read -r name; do
    grep -qw -- "$name" screen || fail "$name is in the JSON and not on the screen"
done <names
grep -q '35,746,307' screen || fail "no parameters on the screen"
grep -q 'conv_out' screen || fail "no layers on the screen"

# layers add up to the whole
total=$(sed -n 's/^ *"parameters": \([0-9]*\),*$/\1/p' cifar.json | tail -n +2 | paste -sd+ | { read -r s; echo $((s)); })
[[ $total == 35746307 ]] || fail "the layers have $total parameters"

# memory: weights as the parameters say, activations in proportion to the batch, more than this machine has is no fault
[[ $(figure weights_bytes cifar.json) -ge $((4 * 35746307)) ]] || fail "weights_bytes"
"$ddpm" plan "$root/configs/ddpm-cifar10.yaml" --batch 16 --json >cifar16.json || fail "batch 16"
a=$(figure activations_bytes cifar.json) b=$(figure activations_bytes cifar16.json)
((b > a * 18 / 10 && b < a * 22 / 10)) || fail "activations: $a for 8 images, $b for 16"
(is_sanitized || ulimit -v 4000000; "$ddpm" plan "$root/configs/ddpm-256.yaml" --batch 512 --json) >huge.json 2>err || fail "more than there is"
[[ $(figure total_bytes huge.json) -gt 100000000000 ]] || fail "512 images of 256x256 take $(figure total_bytes huge.json)"

# what cannot be
make_config tiny.yaml
expect 0 "" "$ddpm" plan tiny.yaml
expect 66 "nowhere.yaml" "$ddpm" plan nowhere.yaml
expect 78 "channels" "$ddpm" plan tiny.yaml --set model.chanels=32
expect 78 "image_height" "$ddpm" plan tiny.yaml --set model.image_height=7
expect 78 "norm_groups" "$ddpm" plan tiny.yaml --set model.norm_groups=7
expect 78 "lr" "$ddpm" plan tiny.yaml --set train.lr=fast
expect 78 "lr" "$ddpm" plan tiny.yaml --set train.lr=nan
expect 78 "65536" "$ddpm" plan tiny.yaml --set train.batch=99999999999999999999
sed 's/channels: 16/chanels: 16/' tiny.yaml >bad.yaml
expect 78 "bad.yaml:" "$ddpm" plan bad.yaml
grep -q 'channels' "$work/err" || fail "the nearest key is not named"
printf 'model: [1, 2' >torn.yaml
expect 78 "torn.yaml" "$ddpm" plan torn.yaml
{ cat tiny.yaml; printf 'model:\n  channels: 32\n'; } >twice.yaml
expect 78 "twice.yaml" "$ddpm" plan twice.yaml
sed 's/$/\r/' tiny.yaml >crlf.yaml
"$ddpm" plan crlf.yaml >out 2>err
[[ $? == 0 || $? == 78 ]] || fail "CRLF: neither read nor refused"
head -c 1000000 /dev/zero | tr '\0' x >long.yaml
expect 78 "long.yaml" "$ddpm" plan long.yaml
CUDA_VISIBLE_DEVICES='' CUDA_ON_CPU_DEVICES=0 expect 79 "cuda" "$ddpm" plan tiny.yaml --device cuda
expect 64 "gpu" "$ddpm" plan tiny.yaml --device gpu
mkdir folder.yaml
"$ddpm" plan folder.yaml >out 2>err
[[ $? != 0 ]] || fail "a folder was read as a configuration"
if [[ $(id -u) != 0 ]]; then
    cp tiny.yaml closed.yaml
    chmod 000 closed.yaml
    expect 77 "closed.yaml" "$ddpm" plan closed.yaml
fi
exit 0
