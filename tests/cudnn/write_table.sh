#!/usr/bin/env bash
# Writes tests/cudnn/plans-VERSION.tsv, the engines cuDNN gives every shipped configuration (plan_table.c):
#
#   tests/cudnn/write_table.sh [BUILD]             by the cuDNN that BUILD (default: build) was linked with
#   tests/cudnn/write_table.sh --newest [BUILD]    by the newest wheel on PyPI, in a virtual environment in BUILD
#
# A table changes only with the commit that says why: another cuDNN, other graphs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
newest=false
if [[ ${1:-} == --newest ]]; then
    newest=true
    shift
fi
build=$(realpath "${1:-build}")
libraries=$build/tests/cudnn/driver
if $newest; then
    python3 -m venv "$build/cudnn-newest"
    "$build/cudnn-newest/bin/pip" -q --disable-pip-version-check install --no-deps nvidia-cudnn-cu13
    libraries+=:$(echo "$build"/cudnn-newest/lib/python*/site-packages/nvidia/cudnn/lib)
fi
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
version=$("$build/tests/plan_table" --version)
table=tests/cudnn/plans-$version.tsv
"$build/tests/plan_table" devices configs/*.yaml >"$table.new"
mv "$table.new" "$table"
echo "$table: $(($(wc -l <"$table") - 1)) graphs"
