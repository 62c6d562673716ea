#!/bin/bash
# run.sh BUILD SECONDS [NAME...] - runs every fuzz target (or those named) from its kept corpus, one a core; stops at the first
# finding, whose input stays in BUILD/fuzz/findings. New inputs go to BUILD/fuzz/work, not into the corpus.
set -euo pipefail
build=${1:?usage: run.sh BUILD SECONDS [NAME...]}
seconds=${2:?usage: run.sh BUILD SECONDS [NAME...]}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$build" && pwd)
if [ $# -eq 0 ]; then
    for program in "$build"/fuzz/fuzz_*; do
        [ -x "$program" ] && set -- "$@" "$(basename "$program" | sed s/^fuzz_//)"
    done
fi

fuzz() {
    local name=$1 log="$build/fuzz/$1.log" dictionary=()
    mkdir -p "$build/fuzz/work/$name" "$build/fuzz/findings" "$here/corpus/$name"
    [ -f "$here/$name.dict" ] && dictionary=("-dict=$here/$name.dict")
    if ! "$build/fuzz/fuzz_$name" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 -artifact_prefix="$build/fuzz/findings/$name-" "${dictionary[@]}" \
        "$build/fuzz/work/$name" "$here/corpus/$name" >"$log" 2>&1; then
        printf '== %s\n%s\n' "$name" "$(tail -40 "$log")"
        return 1
    fi
    printf '== %s\n%s\n' "$name" "$(grep -E 'number_of_executed_units|average_exec_per_sec' "$log")"
}

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # the others, where one has a finding
free=$(nproc)
for name; do
    if ((free == 0)); then
        wait -n
        free=1
    fi
    fuzz "$name" &
    free=$((free - 1))
done
while [ -n "$(jobs -p)" ]; do
    wait -n
done
