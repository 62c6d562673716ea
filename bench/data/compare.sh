#!/bin/bash
# `ddpm pack` against a Pillow loop with as many processes, on the same folder of small PNGs, in turn.
# usage: compare.sh DDPM [IMAGES=20000] [PROCESSES=2] [ROUNDS=3]     needs python3 with Pillow and NumPy (PYTHON=...)
set -euo pipefail
ddpm=$(realpath "$1") images=${2:-20000} processes=${3:-2} rounds=${4:-3}
here=$(dirname "$(realpath "$0")") python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" "$here/make_pngs.py" "$work/pngs" "$images"
for ((i = 1; i <= rounds; i++)); do
    loop=$("$python" "$here/pillow_loop.py" "$work/pngs" "$work/loop.npy" "$processes")
    start=$(date +%s.%N)
    "$ddpm" pack "$work/pngs" -o "$work/pack.safetensors" --threads "$processes" --quiet >"$work/said"
    ours=$(echo "$(date +%s.%N) - $start" | bc)
    echo "$loop $ours" | tee -a "$work/times"
done
# the same images came out, byte for byte
"$python" - "$work" <<'PY'
import json, struct, sys
import numpy as np
raw = open(sys.argv[1] + "/pack.safetensors", "rb").read()
size = struct.unpack("<Q", raw[:8])[0]
begin, end = json.loads(raw[8 : 8 + size])["images"]["data_offsets"]
loop = np.load(sys.argv[1] + "/loop.npy")
assert raw[8 + size + begin : 8 + size + end] == loop.tobytes(), "the images differ"
PY
awk -v n="$images" '{ loop[NR] = $1; ours[NR] = $2; ratio[NR] = $1 / $2 }
    function median(v,    i, j, t) {
        for (i = 1; i <= NR; i++) for (j = i + 1; j <= NR; j++) if (v[j] < v[i]) { t = v[i]; v[i] = v[j]; v[j] = t }
        return v[int((NR + 1) / 2)]
    }
    END { printf "pillow %.0f images/s, ddpm pack %.0f images/s, median ratio %.2f\n",
          n / median(loop), n / median(ours), median(ratio) }' "$work/times"
