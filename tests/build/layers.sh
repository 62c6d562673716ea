#!/usr/bin/env bash
# No layer includes a header of a layer to its right, public headers include public ones only, CUDA's headers stay where they
# belong, and no header's name is used by two layers (includes are flat: the wrong one would win).
#
#   tests/build/layers.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
declare -A rank=([core]=0 [data]=1 [backend]=1 [model]=2 [diffusion]=3 [sample]=4 [train]=5 [cli]=6) owner=()
bad=0

complain() {
    echo "$1"
    bad=1
}

while read -r header; do
    layer=${header#src/}
    layer=${layer%%/*}
    name=${header##*/}
    [[ -n ${rank[$layer]:-} ]] || complain "$header: '$layer' is no layer"
    if [[ -n ${owner[$name]:-} && ${owner[$name]} != "$layer" ]]; then
        complain "$name is a header of both ${owner[$name]} and $layer"
    fi
    owner[$name]=$layer
done < <(find src -name '*.h' | sort)

count=0
while IFS=: read -r file line text; do
    count=$((count + 1))
    layer=${file#src/}
    layer=${layer%%/*}
    name=$(sed -E 's/^[^"<]*["<]([^">]*)[">].*/\1/' <<< "$text")
    case $name in
    cuda*.h | cudnn*.h | cublas*.h | nccl.h)
        [[ $file == src/backend/cuda/* ]] || complain "$file:$line: $name outside src/backend/cuda and kernels"
        ;;
    esac
    to=${owner[${name##*/}]:-}
    [[ -z $to || $name == ddpm/* || $text == *'<'* ]] && continue
    if [[ $to != "$layer" ]] && ((${rank[$to]} >= ${rank[$layer]})); then
        complain "$file:$line: $layer includes $name, which belongs to $to"
    fi
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include' src --include='*.c' --include='*.h')

while IFS=: read -r file line text; do
    complain "$file:$line: a public header includes a private one: $text"
done < <(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' include/ddpm/*.h | grep -v '"ddpm/' || true)

echo "$count includes"
exit $bad
