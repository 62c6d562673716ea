#!/bin/bash
# run.sh BUILD SECONDS [NAME...] - runs every fuzz target (or those named) from its kept corpus; stops at the first finding,
# whose input stays in BUILD/fuzz/findings. New inputs go to BUILD/fuzz/work, not into the corpus.
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
for name; do
    mkdir -p "$build/fuzz/work/$name" "$build/fuzz/findings" "$here/corpus/$name"
    dictionary=()
    [ -f "$here/$name.dict" ] && dictionary=("-dict=$here/$name.dict")
    echo "== $name"
    log="$build/fuzz/$name.log"
    if ! "$build/fuzz/fuzz_$name" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 -artifact_prefix="$build/fuzz/findings/$name-" "${dictionary[@]}" \
        "$build/fuzz/work/$name" "$here/corpus/$name" >"$log" 2>&1; then
        tail -40 "$log"
        exit 1
    fi
    grep -E 'number_of_executed_units|average_exec_per_sec' "$log"
done
