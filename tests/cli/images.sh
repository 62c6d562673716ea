# Pictures: damaged and foreign ones are rejected, listed with a reason, and never used; --skip-bad goes on without them.
source "$(dirname "$0")/common.bash"

# a grey 4x4 PNG
png() {
    printf '\211\120\116\107\015\012\032\012\000\000\000\015\111\110\104\122\000\000\000\004\000\000\000\004\010'\
'\000\000\000\000\214\232\301\242\000\000\000\025\111\104\101\124\170\332\143\140\000\001\015\040\140'\
'\010\000\002\206\012\040\000\000\025\364\003\301\064\223\321\035\000\000\000\000\111\105\116\104\256'\
'\102\140\202'
}
mkdir good
for i in 1 2 3; do png >"good/$i.png"; done
expect 0 "" "$ddpm" pack good -o good.safetensors
"$ddpm" info --json good.safetensors >info.json || fail "info"
[[ $(figure images info.json) == 3 && $(figure image info.json) == 4x4x1 ]] || fail "pack of three pictures"

# each kind of bad file beside three good ones
size=$(stat -c %s good/1.png)
bad() { # bad NAME: made in the folder `one`
    rm -rf one
    cp -r good one
    cat >"one/$1"
}
check() { # check NAME
    expect 65 "" "$ddpm" pack one -o bad.safetensors
    [[ ! -e bad.safetensors ]] || fail "$1: a pack was made"
    grep -qF -- "$1" bad.safetensors.rejected.txt || fail "$1 is not listed"
    expect 0 "" "$ddpm" pack one -o skipped.safetensors --skip-bad
    "$ddpm" info --json skipped.safetensors >info.json || fail "info"
    [[ $(figure images info.json) == 3 ]] || fail "$1 was used"
    rm -f bad.* skipped.*
}
png | head -c $((size - 20)) | bad truncated.png && check truncated.png
png | bad crc.png && flip_byte one/crc.png 45 && check crc.png
: | bad nothing.png && check nothing.png
printf 'GIF89a\001\000\001\000\200\000\000\000\000\000\377\377\377!\371\004\001\000\000\000\000,\000\000\000\000\001\000\001\000\000\002\002D\001\000;' | bad gif.png && check gif.png
{ png; printf 'behind the end'; } | bad tail.png && check tail.png
printf '\377\330\377\340\000\020JFIF\000\001\001\000\000\001\000\001\000\000' | bad cut.jpg && check cut.jpg

# a bomb: 16384 x 16384 in 67 bytes
{ png | head -c 16; printf '\000\000\100\000\000\000\100\000'; png | tail -c +25; } | bad bomb.png && check bomb.png

# not files at all
rm -rf one && cp -r good one && mkfifo one/pipe.png
timeout 20 "$ddpm" pack one -o pipe.safetensors >out 2>err
got=$?
[[ $got == 65 || $got == 0 ]] || fail "a pipe among pictures ends with $got"
timeout 20 "$ddpm" pack /dev/zero -o zero.safetensors >out 2>err
got=$?
[[ $got == 65 || $got == 64 ]] || fail "/dev/zero ends with $got"
expect 65 "" "$ddpm" pack "$ddpm" -o program.safetensors
mkdir hollow
expect 65 "hollow" "$ddpm" pack hollow -o hollow.safetensors

# sizes that differ are refused unless told how to fit
rm -rf one && cp -r good one && cp -r good two
expect 0 "" "$ddpm" pack one --size 2 --fit crop -o crop.safetensors
expect 65 "" "$ddpm" pack two --size 8 -o refuse.safetensors
expect 64 "crop" "$ddpm" pack two --size 8 --fit corp -o x.safetensors

# idx and CIFAR that are too short
make_idx idx 16
head -c 500 idx/train-images-idx3-ubyte >idx/short-images-idx3-ubyte
expect 65 "short-images" "$ddpm" pack idx/short-images-idx3-ubyte -o x.safetensors
bytes 3000 000 >data_batch_1.bin
expect 65 "data_batch_1.bin" "$ddpm" pack data_batch_1.bin -o x.safetensors
bytes 6146 001 >data_batch_2.bin
expect 0 "" "$ddpm" pack data_batch_2.bin -o cifar.safetensors
"$ddpm" info --json cifar.safetensors >info.json || fail "info"
[[ $(figure images info.json) == 2 && $(figure image info.json) == 32x32x3 ]] || fail "CIFAR batch of two"
exit 0
