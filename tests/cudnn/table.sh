# The committed table of engines is what this cuDNN gives, and no graph is without a plan unless it is known why.
# Arguments: plan_table, the source folder.
table_of=$1 root=$2
version=$("$table_of" --version) || exit 1
committed=$root/tests/cudnn/plans-$version.tsv
if [[ ! -f $committed ]]; then
    echo "skipped: no table for cuDNN $version; tests/cudnn/write_table.sh makes one"
    exit 77
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
"$table_of" "$root/devices" "$root"/configs/*.yaml >"$work/table" || exit 1

# Without an engine on some GPU, and what computes them then:
#   gradients of kernels in f32 from bf16 activations    the form "rounded", whose result is added to the f32 gradient
#   dense products in full f32                           cuBLASLt, or kernels/linear.cu, conv.cu
#   sums of y behind a convolution (README.md)           GroupNorm reads y for them
#   SiLU's gradient and sums behind the gradient of a    GroupNorm's gradient takes it, and reads dx and x for its sums
#   convolution's input (README.md)
#   attention's gradient of heads above 128 on sm_80, above 256 anywhere, and whatever of it sm_100 lacks
#                                                        kernels/attention_bwd.cu
awk -F'\t' 'NR > 1 && ($4 $5 $6 $7) ~ /none|failed/ {
    if ($1 == "conv2d_bwd_filter" && $2 == "f32" && $3 ~ / bf16 /) next
    if ($2 == "matmul" && $3 ~ /^matmul f32/) next
    if ($2 == "sums" || $2 == "gradient") next
    if ($1 ~ /^attention/) next
    print "no engine: " $0
    faults++
} END { exit faults > 0 }' "$work/table" || exit 1

diff "$committed" "$work/table" >"$work/diff" && exit 0
echo "cuDNN $version gives other engines than $committed:"
head -n 40 "$work/diff"
exit 1
