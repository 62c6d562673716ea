/* fuzz_safetensors.c - any bytes as a container: refused, or every promise of the reader holds.
 *
 * An input that begins with '{' is a header up to its last '}' and data behind it, with the length
 * put before: mutations need not guess a length to get through. Others are taken as they are. */
#include "fuzz.h"

#include "safetensors.h"

#include <string.h>

static void check_tensor(st_file *f, const st_tensor *t, size_t file_bytes)
{
    unsigned char some[64];
    uint64_t bytes = st_dtype_size(t->dtype);
    FUZZ_CHECK(t->rank >= 0 && t->rank <= 8);
    for (int i = 0; i < t->rank; i++) {
        FUZZ_CHECK(t->shape[i] >= 0);
        FUZZ_CHECK(!__builtin_mul_overflow(bytes, (uint64_t)t->shape[i], &bytes));
    }
    FUZZ_CHECK(bytes == t->bytes && t->offset <= file_bytes && t->bytes <= file_bytes - t->offset);
    FUZZ_CHECK(st_find(f, t->name) == t);
    FUZZ_CHECK(st_read(f, t, 0, some, t->bytes < sizeof some ? t->bytes : sizeof some) == DDPM_OK);
    if (t->bytes / st_dtype_size(t->dtype) > 4096) return;
    double *values = malloc(4096 * sizeof *values);
    FUZZ_CHECK(values);
    st_read_f64(f, t, values);
    st_read_f32(f, t, (float *)values);
    st_read_i64(f, t, (int64_t *)values);
    free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint64_t length = 0;
    size_t head_bytes = 0;
    if (bytes > 0 && data[0] == '{') {
        const uint8_t *last = memrchr(data, '}', bytes);
        length = last ? (uint64_t)(last - data) + 1 : bytes;
        head_bytes = sizeof length;
    }
    st_file *f;
    const ddpm_status s = st_open(fuzz_file(&length, head_bytes, data, bytes), &f);
    if (s) {
        FUZZ_CHECK(s == DDPM_FORMAT && *ddpm_last_error());
        return 0;
    }
    for (int i = 0; i < st_count(f); i++) {
        FUZZ_CHECK(i == 0 || strcmp(st_at(f, i - 1)->name, st_at(f, i)->name) < 0);
        check_tensor(f, st_at(f, i), head_bytes + bytes);
    }
    for (int i = 0; i < st_metadata_count(f); i++) {
        const char *key, *value;
        st_metadata_at(f, i, &key, &value);
        FUZZ_CHECK(st_metadata(f, key) == value);
    }
    st_verify(f);
    st_close(f);
    return 0;
}
