/* test_dataset.c - the stream of batches: every image once an epoch, the same whatever the threads,
 * never a hang. */
#include "images.h"

#include "ddpm/dataset.h"
#include "order.h"
#include "pack.h"
#include "safetensors.h"

#include <math.h>

/* A pack of n images 2 x 2 x 1 whose bytes are their number, in shards of so many. */
static const char *pack_make(const char *dir, char path[SUPPORT_PATH], int n, uint64_t shard_bytes,
                             bool has_labels)
{
    char images[SUPPORT_PATH], labels[SUPPORT_PATH];
    support_join(images, dir, "images-idx3-ubyte");
    support_join(labels, dir, "labels-idx1-ubyte");
    unlink(labels);
    idx_write_files(images, has_labels ? labels : NULL, n, 2, 2);
    support_join(path, dir, "pack");
    const char *source = images;
    pack_report report;
    assert_ok(pack_run(&source, 1, path, &(pack_options){.shard_bytes = shard_bytes}, NULL, NULL,
                       &report));
    assert_int_equal(report.packed, n);
    return path;
}

static ddpm_dataset *dataset_make(const char *path, const ddpm_dataset_options *o)
{
    ddpm_dataset *ds = NULL;
    assert_ok(ddpm_dataset_open(path, o, &ds));
    return ds;
}

/* ---- the order ---- */

static void test_order_is_a_permutation(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 70; n++)
        for (uint32_t epoch = 0; epoch < 5; epoch++) {
            uint8_t seen[70] = {0};
            for (uint64_t i = 0; i < n; i++) {
                const uint64_t at = order_at(3, epoch, n, i);
                assert_in_range(at, 0, n - 1);
                seen[at]++;
            }
            for (uint64_t i = 0; i < n; i++)
                assert_int_equal(seen[i], 1);
        }
    assert_in_range(order_at(1, 0, UINT64_C(1) << 55, 12345), 0, (UINT64_C(1) << 55) - 1);
}

/* Each image comes to each place equally often: chi-square over 4000 epochs, bound at 6 deviations.
 */
static void test_order_is_even(void **state)
{
    (void)state;
    for (int n = 2; n <= 11; n++) {
        double chi = 0;
        int count[11][11] = {{0}};
        for (uint32_t epoch = 0; epoch < 4000; epoch++)
            for (int i = 0; i < n; i++)
                count[i][order_at(99, epoch, (uint64_t)n, (uint64_t)i)]++;
        for (int i = 0; i < n; i++)
            for (int k = 0; k < n; k++) {
                const double d = count[i][k] - 4000.0 / n;
                chi += d * d / (4000.0 / n);
            }
        const double freedom = (n - 1) * (n - 1);
        assert_true(chi < freedom + 6 * sqrt(2 * freedom) + 6);
    }
}

/* Neighbours in the pack are not neighbours in the epoch, and the epochs differ. */
static void test_order_mixes(void **state)
{
    (void)state;
    int near = 0, same = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        const int64_t a = (int64_t)order_at(5, 0, 60000, i),
                      b = (int64_t)order_at(5, 0, 60000, i + 1);
        near += llabs(a - b) < 100;
        same += a == (int64_t)order_at(5, 1, 60000, i);
    }
    assert_in_range(near, 0, 66); /* 33 are to be expected, 5.7 the deviation */
    assert_in_range(same, 0, 6);  /* one in six */
}

/* ---- the stream ---- */

static void test_every_image_once_an_epoch(void **state)
{
    char path[SUPPORT_PATH];
    pack_make(*state, path, 23, 0, true);
    static const int64_t batches[] = {1, 5, 23, 24, 100};
    for (size_t k = 0; k < sizeof batches / sizeof *batches; k++)
        for (int threads = 0; threads < 4; threads += 3) {
            const ddpm_dataset_options o = {
                .batch = batches[k], .threads = threads, .seed = 4, .validation = 3};
            ddpm_dataset *ds = dataset_make(path, &o);
            int seen[23] = {0};
            const int64_t epochs = 4, total = 20 * epochs;
            ddpm_batch b;
            for (int64_t p = 0; p < total; p++) {
                const int64_t i = p % o.batch;
                if (i == 0) assert_ok(ddpm_dataset_next(ds, (uint64_t)(p / o.batch), &b));
                const int64_t number = b.number[i];
                seen[number]++;
                assert_int_equal(b.images[4 * i], number);
                assert_int_equal(b.labels[i], number % 10);
                assert_int_equal(b.flip[i], 0);
                if (p % 20 == 19)
                    for (int n = 0, twenty = 0; n < 23; n++) {
                        assert_true(seen[n] == 0 || seen[n] == 1 + p / 20);
                        twenty += seen[n] != 0;
                        if (n == 22) assert_int_equal(twenty, 20);
                    }
            }
            ddpm_dataset_close(ds);
        }
}

static void batch_compare(ddpm_dataset *a, ddpm_dataset *b, uint64_t step, int64_t n)
{
    ddpm_batch x, y;
    assert_ok(ddpm_dataset_next(a, step, &x));
    assert_ok(ddpm_dataset_next(b, step, &y));
    assert_memory_equal(x.number, y.number, (size_t)n * 8);
    assert_memory_equal(x.images, y.images, (size_t)n * 4);
    assert_memory_equal(x.flip, y.flip, (size_t)n);
    assert_memory_equal(x.labels, y.labels, (size_t)n * 8);
}

/* Threads, memory or disk, shards or not, started at step 0 or later: the same batches. */
static void test_batch_is_a_function_of_the_step(void **state)
{
    char path[SUPPORT_PATH], shards[SUPPORT_PATH], other[SUPPORT_PATH];
    pack_make(*state, path, 57, 0, true);
    support_join(other, *state, "other");
    mkdir(other, 0777);
    pack_make(other, shards, 57, 100, true);
    const ddpm_dataset_options plain = {.batch = 8, .seed = 11, .flip = true};
    ddpm_dataset_options read_ahead = plain, from_disk = plain;
    read_ahead.threads = 3;
    from_disk.memory_bytes = 1;
    from_disk.threads = 2;
    ddpm_dataset *a = dataset_make(path, &plain), *b = dataset_make(path, &read_ahead);
    ddpm_dataset *c = dataset_make(shards, &from_disk);
    for (uint64_t step = 0; step < 40; step++) {
        batch_compare(a, b, step, 8);
        batch_compare(a, c, step, 8);
    }
    static const uint64_t jumps[] = {7, 8, 9, 100, 3, 3, 4, 1u << 20};
    for (size_t i = 0; i < sizeof jumps / sizeof *jumps; i++) {
        batch_compare(a, b, jumps[i], 8);
        batch_compare(a, c, jumps[i], 8);
    }
    ddpm_dataset_close(a);
    ddpm_dataset_close(b);
    ddpm_dataset_close(c);
}

static void test_seed_and_flip(void **state)
{
    char path[SUPPORT_PATH];
    pack_make(*state, path, 200, 0, false);
    ddpm_dataset *a =
        dataset_make(path, &(ddpm_dataset_options){.batch = 200, .seed = 1, .flip = true});
    ddpm_dataset *b =
        dataset_make(path, &(ddpm_dataset_options){.batch = 200, .seed = 2, .flip = true});
    ddpm_batch x, y;
    assert_ok(ddpm_dataset_next(a, 0, &x));
    assert_ok(ddpm_dataset_next(b, 0, &y));
    assert_null(x.labels);
    int same = 0, flips = 0;
    for (int i = 0; i < 200; i++) {
        same += x.number[i] == y.number[i];
        flips += x.flip[i];
        assert_in_range(x.flip[i], 0, 1);
    }
    assert_in_range(same, 0, 8);     /* one is to be expected */
    assert_in_range(flips, 58, 142); /* 100, within 6 deviations of 7.1 */
    ddpm_dataset_close(a);
    ddpm_dataset_close(b);
}

static void test_validation(void **state)
{
    char path[SUPPORT_PATH];
    pack_make(*state, path, 50, 0, true);
    ddpm_dataset_options o = {.batch = 7, .seed = 1, .validation = 12, .threads = 1};
    ddpm_dataset *a = dataset_make(path, &o);
    o.seed = 2;
    o.memory_bytes = -1;
    ddpm_dataset *b = dataset_make(path, &o);
    const int64_t *of_all;
    assert_non_null(ddpm_dataset_memory(a, &of_all));
    assert_null(ddpm_dataset_memory(b, &of_all));
    uint8_t x[12 * 4], y[12 * 4];
    int64_t labels[12];
    assert_ok(ddpm_dataset_validation(a, 0, 12, x, labels));
    assert_ok(ddpm_dataset_validation(b, 0, 5, y, NULL));
    assert_ok(ddpm_dataset_validation(b, 5, 7, y + 20, NULL));
    assert_memory_equal(x, y, sizeof x); /* the same for every seed */
    for (int i = 0; i < 12; i++) {
        assert_int_equal(labels[i], x[4 * i] % 10);
        for (int k = 0; k < i; k++)
            assert_int_not_equal(x[4 * i], x[4 * k]);
    }
    ddpm_batch batch;
    for (uint64_t step = 0; step < 20; step++) { /* and never trained on */
        assert_ok(ddpm_dataset_next(a, step, &batch));
        for (int i = 0; i < 7; i++)
            for (int k = 0; k < 12; k++)
                assert_int_not_equal(batch.number[i], x[4 * k]);
    }
    assert_status(ddpm_dataset_validation(a, 10, 3, x, NULL), DDPM_ARG);
    ddpm_dataset_close(a);
    ddpm_dataset_close(b);
    ddpm_dataset *none = NULL;
    o.validation = 50;
    assert_status(ddpm_dataset_open(path, &o, &none), DDPM_CONFIG);
    assert_message("50");
    assert_null(none);
}

static void test_described(void **state)
{
    char path[SUPPORT_PATH];
    pack_make(*state, path, 30, 0, true);
    ddpm_dataset *ds = dataset_make(path, &(ddpm_dataset_options){.validation = 4});
    const ddpm_dataset_info *info = ddpm_dataset_describe(ds);
    assert_int_equal(info->n, 30);
    assert_int_equal(info->n_train, 26);
    assert_int_equal(info->n_validation, 4);
    assert_int_equal(info->height, 2);
    assert_int_equal(info->channels, 1);
    assert_int_equal(info->n_classes, 10);
    assert_int_equal(strlen(info->source_hash), 32);
    assert_string_equal(ddpm_dataset_class_name(ds, 9), "9");
    assert_null(ddpm_dataset_class_name(ds, 10));
    assert_null(ddpm_dataset_class_name(ds, -1));
    ddpm_batch b;
    assert_status(ddpm_dataset_next(ds, 0, &b), DDPM_ARG); /* no batch size */
    ddpm_dataset_close(ds);
    ddpm_dataset_close(NULL);
}

/* ---- what is no pack ---- */

static void refused(const char *path, ddpm_status status, const char *why)
{
    ddpm_dataset *ds = NULL;
    assert_status(ddpm_dataset_open(path, &(ddpm_dataset_options){.batch = 2}, &ds), status);
    assert_message(why);
    assert_null(ds);
}

static void test_no_pack(void **state)
{
    char path[SUPPORT_PATH];
    refused(support_join(path, *state, "absent"), DDPM_NOINPUT, "absent");
    refused(*state, DDPM_FORMAT, "ddpm pack");
    refused(support_join(path, *state, "other.safetensors"), DDPM_NOINPUT, "other");
    st_writer *w = NULL;
    assert_ok(st_writer_create(&w));
    assert_ok(st_add(w, "images", ST_U8, 1, (const int64_t[]){4}));
    assert_ok(st_begin(w, path));
    assert_ok(st_put(w, "1234", 4));
    assert_ok(st_finish(w));
    refused(path, DDPM_FORMAT, "not a pack");
}

static void test_missing_and_foreign_shards(void **state)
{
    char path[SUPPORT_PATH], shard[SUPPORT_PATH], moved[SUPPORT_PATH];
    pack_make(*state, path, 57, 100, false); /* 25 images of 4 bytes: 3 shards */
    assert_int_equal(support_count_entries(path), 3);
    support_join(shard, path, "pack-00001-of-00003.safetensors");
    support_join(moved, path, "pack-00002-of-00003.safetensors");
    rename(shard, moved);
    refused(path, DDPM_NOINPUT, "pack-00001");
    rename(moved, shard);
    refused(path, DDPM_NOINPUT, "pack-00002");
    char *bytes = NULL;
    size_t n = 0;
    bytes = support_read_file(shard, &n);
    support_write_file(moved, bytes, n);
    free(bytes);
    refused(path, DDPM_FORMAT, "says shard 1 of 3");
}

/* A byte that turned over on disk is seen when the pack is read into memory. */
static void test_damaged_pack(void **state)
{
    char path[SUPPORT_PATH];
    size_t n = 0;
    pack_make(*state, path, 40, 0, true);
    char *bytes = support_read_file(path, &n);
    for (size_t i = 0; i < n; i += 7) {
        ddpm_dataset *ds = NULL;
        bytes[i] ^= 1;
        support_write_file(path, bytes, n);
        const ddpm_status s = ddpm_dataset_open(path, &(ddpm_dataset_options){.batch = 2}, &ds);
        if (s != DDPM_FORMAT) fail_msg("byte %zu of %zu: %s", i, n, ddpm_status_name(s));
        bytes[i] ^= 1;
    }
    free(bytes);
}

/* The pack is cut short while it is read from disk: the batch fails, and again, and nothing hangs.
 */
static void test_disk_fails_later(void **state)
{
    char path[SUPPORT_PATH];
    pack_make(*state, path, 40, 0, false);
    ddpm_dataset *ds =
        dataset_make(path, &(ddpm_dataset_options){.batch = 40, .threads = 2, .memory_bytes = 1});
    ddpm_batch b;
    assert_ok(ddpm_dataset_next(ds, 0, &b));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size - 100), 0);
    ddpm_status s = DDPM_OK;
    for (uint64_t step = 1; !s && step < 8; step++) /* some were read ahead */
        s = ddpm_dataset_next(ds, step, &b);
    assert_true(s == DDPM_FORMAT || s == DDPM_IO);
    assert_true(strlen(ddpm_last_error()) > 0);
    s = ddpm_dataset_next(ds, 100, &b);
    assert_true(s == DDPM_FORMAT || s == DDPM_IO);
    ddpm_dataset_close(ds);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, support_setup, support_teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_is_a_permutation),
        cmocka_unit_test(test_order_is_even),
        cmocka_unit_test(test_order_mixes),
        IN_FOLDER(test_every_image_once_an_epoch),
        IN_FOLDER(test_batch_is_a_function_of_the_step),
        IN_FOLDER(test_seed_and_flip),
        IN_FOLDER(test_validation),
        IN_FOLDER(test_described),
        IN_FOLDER(test_no_pack),
        IN_FOLDER(test_missing_and_foreign_shards),
        IN_FOLDER(test_damaged_pack),
        IN_FOLDER(test_disk_fails_later),
    };
    return cmocka_run_group_tests_name("dataset", tests, NULL, NULL);
}
