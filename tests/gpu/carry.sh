#!/usr/bin/env bash
# What a machine with a GPU, but without a network and Debian's packages, needs beside the tree to build the program:
#
#   tests/gpu/carry.sh [FOLDER]      default build-gpu-carry, about 40 MB; made anew each time
#
#   prefix.tar.xz     headers, shared libraries and pkg-config of the packages that cmake/Dependencies.cmake asks for, taken
#                     from this machine, with the libraries that those need; runs where glibc is this machine's or later.
#                     Without oneDNN's the CPU backend would not build, and it is what a GPU is compared with.
#   fashion-mnist/    the data set as Debian has it, packed there by the program
#   commit            of the tree, which travels without its history
#
# tests/gpu.sh unpacks it. It is machine code: the machine here and the one there are of one kind (x86-64, say).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-build-gpu-carry}
readonly packages=(libdnnl-dev libcyaml-dev libyaml-dev libjansson-dev libzip-dev zlib1g-dev libxxhash-dev libstb-dev
    libwebp-dev libcmocka-dev)
readonly dataset=/usr/share/datasets/fashion-mnist
# What every machine with a compiler has: taking it along would mix two C libraries.
readonly theirs='/(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp))\.so'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
mkdir -p "$prefix"/{bin,include,lib/pkgconfig}

libraries() { # of FILE, with all that those need in turn
    ldd "$1" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | grep -Ev "$theirs" || true
}

# The library under its own name, as programs ask for it at run time.
take_library() {
    local name
    name=$(basename "$1")
    [[ -e $prefix/lib/$name ]] && return
    cp -L "$1" "$prefix/lib/$name"
    strip --strip-unneeded "$prefix/lib/$name" 2> /dev/null || true
}

take_package() {
    local path name soname needed
    while read -r path; do
        [[ -f $path ]] || continue
        name=$(basename "$path")
        case $path in
        /usr/include/*)
            name=${path#/usr/include/}
            name=${name#*-linux-gnu/}
            mkdir -p "$prefix/include/$(dirname "$name")"
            cp -L "$path" "$prefix/include/$name"
            ;;
        *.pc)
            sed -e 's|^prefix=.*|prefix=${pcfiledir}/../..|' -e 's|^libdir=.*|libdir=${pcfiledir}/..|' \
                -e 's|/usr/lib/[a-z0-9_]*-linux-gnu|${pcfiledir}/..|' -e 's|/usr/include|${pcfiledir}/../../include|' \
                "$path" > "$prefix/lib/pkgconfig/$name"
            ;;
        *.so)
            soname=$(objdump -p "$path" | sed -n 's/^ *SONAME *//p')
            take_library "$(dirname "$path")/$soname"
            ln -sf "$soname" "$prefix/lib/$name"
            for needed in $(libraries "$path"); do take_library "$needed"; done
            ;;
        esac
    done < <(dpkg -L "$1")
}

for package in "${packages[@]}"; do take_package "$package"; done

pkgconf=$(realpath "$(command -v pkg-config)")
cp "$pkgconf" "$prefix/bin/pkgconf"
for needed in $(libraries "$pkgconf"); do take_library "$needed"; done
cat > "$prefix/bin/pkg-config" <<'SCRIPT'
#!/bin/sh
prefix=$(dirname "$(dirname "$(readlink -f "$0")")")
PKG_CONFIG_LIBDIR=$prefix/lib/pkgconfig PKG_CONFIG_PATH= LD_LIBRARY_PATH=$prefix/lib exec "$prefix/bin/pkgconf" "$@"
SCRIPT
chmod +x "$prefix/bin/pkg-config"

rm -rf "$folder"
mkdir -p "$folder/fashion-mnist"
tar -C "$work" --sort=name --owner=0 --group=0 --mtime=@0 -cf - prefix | xz -6 -T2 > "$folder/prefix.tar.xz"
cp "$dataset"/train-images-idx3-ubyte.gz "$dataset"/train-labels-idx1-ubyte.gz "$folder/fashion-mnist/"
git describe --always --dirty --abbrev=12 > "$folder/commit"
du -ch --apparent-size "$folder"/* | tail -n 4
readonly most_mib=48 # what travels may be 64 MiB in all, and the tree is a dozen
(($(du -sm --apparent-size "$folder" | cut -f1) <= most_mib)) || {
    echo "carry: more than $most_mib MiB" >&2
    exit 1
}
