# `ddpm bench`: figures that belong together, under the same names on screen and in the file.
source "$(dirname "$0")/common.bash"
make_config tiny.yaml
peaks=() # a sanitized build takes a minute for the products that the machine's peak is measured by
! is_sanitized || peaks=(--no-peak)

same_names() { # same_names JSON SCREEN
    sed -n 's/^ *"\([a-z0-9_]*\)":.*/\1/p' "$1" | sort -u >names
    while read -r name; do
        grep -qw -- "$name" "$2" || fail "$name is in $1 and not on the screen"
    done <names
}

export TMPDIR=$work/tmp
mkdir "$TMPDIR"
"$ddpm" bench train tiny.yaml --batch 4 --repeats 5 --warmup 1 --profile "${peaks[@]}" --json train.json >screen 2>err || fail "bench train"
same_names train.json screen
[[ -z $(ls "$TMPDIR") ]] || fail "left in the temporary folder: $(ls "$TMPDIR")"
for name in parameters batch step_median_ms step_p99_ms images_per_s gflop_per_s share_of_peak backend_peak_bytes \
    process_peak_bytes first_step_s date commit peak_gflop_per_s processor; do
    [[ -n $(figure "$name" train.json) ]] || fail "no $name in train.json"
done
[[ $(figure batch train.json) == 4 && $(figure repeats train.json) == 5 ]] || fail "options are not heeded"
less "$(figure step_median_ms train.json)" "$(figure step_p99_ms train.json)" ||
    [[ $(figure step_median_ms train.json) == "$(figure step_p99_ms train.json)" ]] || fail "p99 below the median"
less 0 "$(figure images_per_s train.json)" || fail "impossible figures"
is_sanitized || less "$(figure share_of_peak train.json)" 1.05 || fail "faster than the machine"
grep -q '"op": "conv2d"' train.json || fail "no table of time by op"

"$ddpm" bench sample tiny.yaml --batch 2 --repeats 2 --warmup 0 --steps 4 --no-peak --json sample.json >screen 2>err || fail "bench sample"
same_names sample.json screen
[[ $(figure sampler_steps sample.json) == 4 && $(figure batch sample.json) == 2 ]] || fail "options are not heeded"

# every op of the list has its rows
"$ddpm" bench ops --batch 1 --repeats 1 --warmup 0 --no-peak --json - >ops.json 2>err || fail "bench ops"
ops=$(sed -n '/define OP_LIST/,/[^\\]$/p' "$root/src/backend/ops.h" | grep -o 'X([a-z0-9_]*)' | tr -d 'X()' | grep .)
[[ $(wc -w <<<"$ops") -ge 20 ]] || fail "the list of ops was not found"
for op in $ops; do
    grep -q "\"op\": \"$op\"" ops.json || fail "no row for $op"
done

"$ddpm" bench train tiny.yaml --batch 2 --repeats 1 --warmup 0 --no-peak --json short.json >screen 2>err || fail "bench without peaks"
grep -q '"share_of_peak": null' short.json && grep -q '"peak_gflop_per_s": null' short.json || fail "peaks in spite of --no-peak"

expect 78 "bf16" "$ddpm" bench ops --dtype bf16 --device cpu
"$ddpm" bench ops --op silu --batch 1 --repeats 1 --warmup 0 --no-peak --json one.json >screen 2>err || fail "one op"
[[ $(grep -o '"op": "[a-z0-9_]*"' one.json | sort -u) == '"op": "silu"' ]] || fail "--op silu: other ops too"
expect 64 "no op of this name" "$ddpm" bench ops --op silo
expect 64 "f32 or bf16" "$ddpm" bench ops --dtype f16
expect 64 "train, sample and ops" "$ddpm" bench tarin
expect 66 "nowhere.yaml" "$ddpm" bench train nowhere.yaml
expect 79 "cuda" "$ddpm" bench ops --device cuda
exit 0
