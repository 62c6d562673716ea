#!/usr/bin/env bash
# Does what carry.sh took along suffice? Builds the program from it in a mount namespace where the packages it came from are not
# there: root, and a kernel with overlayfs.
#
#   tests/gpu/carry_check.sh [CARRY] [COMMAND...]    default: tests/gpu.sh --part build, and `ddpm --version` of what it built
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
carry=$(realpath "${1:-build-gpu-carry}")
shift || true
if (($# == 0)); then
    set -- tests/gpu.sh --part build --budget 3600 --carry "$carry" --build build-gpu-check --out build-gpu-check/out
fi
# all that is in these, pkg-config with them; libjansson4 stays, for the linker needs it
export hidden='libdnnl-dev libdnnl2 libcyaml-dev libcyaml1 libyaml-dev libyaml-0-2 libjansson-dev libzip-dev libzip4
    zlib1g-dev libxxhash-dev libstb-dev libstb0 libwebp-dev libwebp7 libwebpmux3 libwebpdemux2 libcmocka-dev libcmocka0
    libprotobuf-c-dev libprotobuf-c1 protobuf-c-compiler libisal-dev libisal2 ocl-icd-libopencl1 pkgconf pkgconf-bin'
export layer=$(mktemp -d)
trap 'rm -rf "$layer"' EXIT
unshare -m bash -euo pipefail -c '
    mount -t tmpfs none "$layer"
    mkdir "$layer"/upper "$layer"/work
    (dpkg -L $hidden 2> /dev/null | while read -r path; do [[ -f $path ]] && realpath -s "$path" || true; done || true) | sed "s|^/lib/|/usr/lib/|" |
        grep "^/usr/" > "$layer"/files
    mount -t overlay none -o lowerdir=/usr,upperdir="$layer"/upper,workdir="$layer"/work /usr
    xargs rm -f < "$layer"/files
    [[ ! -e /usr/include/dnnl.h && ! -e /usr/bin/pkg-config ]] || { echo "carry_check: still there" >&2; exit 1; }
    echo "hidden: $(wc -l < "$layer"/files) files of packages"
    exec "$@"' -- "$@"
