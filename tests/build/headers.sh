#!/usr/bin/env bash
# Every header compiles alone as C17, the public ones as C++17 too, and every public function is a ddpm_ name.
#
#   tests/build/headers.sh BUILD_FOLDER
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(cd "$1" && pwd)
cd "$root"
warnings=(-Wall -Wextra -Wshadow -Wpointer-arith -Wwrite-strings -Wundef -Werror)
paths=(-Iinclude)
for folder in src/* src/backend/cpu; do
    [[ -d $folder ]] && paths+=("-I$folder")
done
# Headers that cmake makes, and those of libraries that are not in the compiler's own path.
while read -r folder; do paths+=("-I$folder"); done < <(find "$build" -name build_info.h -printf '%h\n')
bad=0 count=0

check() { # check HEADER COMPILER ARGUMENT...
    local header=$1
    shift
    count=$((count + 1))
    if ! printf '#include "%s"\n' "$header" | "$@" "${warnings[@]}" "${paths[@]}" -fsyntax-only -; then
        echo "$header does not compile alone by: $*"
        bad=1
    fi
}

for header in include/ddpm/*.h; do
    check "$header" gcc -std=c17 -x c
    check "$header" g++ -std=c++17 -x c++
done
while read -r header; do
    case $header in
    *_tile.h | *_lanes.h) continue ;; # a body, compiled once per instruction set
    esac
    check "$header" gcc -std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -x c
done < <(find src bench -name '*.h' -not -path 'src/backend/cuda/*' | sort) # those need CUDA's headers

# Sources whose optional libraries are missing.
for source in src/core/tensorboard.c src/data/picture.c; do
    count=$((count + 1))
    gcc -std=gnu17 -D_GNU_SOURCE "${warnings[@]}" "${paths[@]}" -fsyntax-only "$source" ||
        { echo "$source does not compile without its optional libraries"; bad=1; }
done

# A library's own names must not get in a program's way. Functions that one layer lends another have their module's
# prefix; all other names are static.
while read -r name; do
    case $name in
    ddpm_*) ;;
    *)
        if grep -rqE -- "\b$name\(" include; then
            echo "include/ declares $name, which has no ddpm_"
            bad=1
        fi
        ;;
    esac
done < <(find "$build" -name 'libddpm_*.a' -exec nm --defined-only -g {} + 2> /dev/null | awk 'NF == 3 {print $3}' | sort -u)

echo "$count headers"
exit $bad
