# The command line itself: help, version, wrong words, and streams that cannot be written.
source "$(dirname "$0")/common.bash"
commands=(pack train sample merge bench plan info)

"$ddpm" --help >out 2>err || fail "--help"
for c in "${commands[@]}"; do
    grep -q "^  $c " out || fail "--help does not list $c"
    "$ddpm" "$c" --help >help 2>err || fail "$c --help"
    grep -q '^Usage: ddpm '"$c" help || fail "$c --help has no usage"
    grep -q '^Example' help || fail "$c --help has no example"
    # a default is told for every option that takes a value and has one; at least one per command that has options
    [[ $c == info || $c == merge ]] || grep -q 'default' help || fail "$c --help tells no defaults"
    "$ddpm" help "$c" | cmp -s - help || fail "help $c differs from $c --help"
done

"$ddpm" --version >out 2>err || fail "--version"
for word in '^ddpm [0-9]' 'oneDNN [0-9]' 'TensorBoard: ' 'WebP animation: ' 'CUDA: '; do
    grep -q "$word" out || fail "--version does not tell $word"
done

"$ddpm" >out 2>err
[[ $? == 64 ]] || fail "no command is not 64"
grep -q '^Usage: ' err || fail "no command shows no help"

expect 64 '`ddpm train`' "$ddpm" trian
expect 64 '--batch' "$ddpm" plan --bacth 3 x.yaml
expect 64 'unknown option --nothing-like-it' "$ddpm" info --nothing-like-it x
expect 64 'needs a value' "$ddpm" plan x.yaml --set
expect 64 'one argument too many: "b"' "$ddpm" info a b
expect 64 'whole number from 1' "$ddpm" plan x.yaml --batch 0x10
expect 64 'takes no value' "$ddpm" info --verify=yes x
expect 64 'section.key=value' "$ddpm" plan x.yaml --set lr
for c in "${commands[@]}"; do
    expect 64 "--help" "$ddpm" "$c"
    expect 64 'unknown option' "$ddpm" "$c" --zzzzzzzzz
done

# what others gave us as names is shown escaped, on one line
expect 66 'a\x0ab\x1b[31m' "$ddpm" info $'a\nb\e[31m'
expect 66 '%s%n' "$ddpm" info '%s%n'

# streams: a reader that leaves is no fault, a full disk is; a closed stream costs its text alone
"$ddpm" plan --keys-markdown 2>err | head -n 1 >out
[[ ${PIPESTATUS[0]} == 0 ]] || fail "a pipe closed early is a fault"
expect 74 'standard output' bash -c '"$0" --help >/dev/full' "$ddpm"
"$ddpm" info /nonexistent 2>&-
[[ $? == 66 ]] || fail "closed stderr changes the exit code"
"$ddpm" info /nonexistent 2>/dev/full
[[ $? == 66 ]] || fail "full stderr changes the exit code"

# no colour where nobody sees it
"$ddpm" info /nonexistent 2>err
grep -q $'\e' err && fail "escape sequences in a file"
exit 0
