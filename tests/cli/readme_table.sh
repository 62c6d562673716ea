# The README's table of configuration keys is the one that the program prints from the list its parser uses.
#   bash tests/cli/readme_table.sh build/ddpm --write    puts it there
source "$(dirname "$0")/common.bash"
begin='<!-- keys:begin -->' end='<!-- keys:end -->'
"$ddpm" plan --keys-markdown >keys 2>err || fail "no table"
[[ $(wc -l <keys) -gt 50 ]] || fail "only $(wc -l <keys) lines"
for mark in "$begin" "$end"; do
    [[ $(grep -cFx -- "$mark" "$root/README.md") == 1 ]] || fail "README.md must have one line $mark"
done
if [[ ${2:-} == --write ]]; then
    { sed "/^$begin\$/q" "$root/README.md"; cat keys; sed -n "/^$end\$/,\$p" "$root/README.md"; } >new
    cat new >"$root/README.md"
fi
sed -n "/^$begin\$/,/^$end\$/p" "$root/README.md" | sed '1d;$d' >there
diff there keys >difference ||
    { head -n 20 difference; fail "README.md differs from \`ddpm plan --keys-markdown\`; write it by: bash tests/cli/readme_table.sh build/ddpm --write"; }
exit 0
