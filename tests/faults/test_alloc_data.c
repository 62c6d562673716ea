/* test_alloc_data.c - every allocation of packing, of reading packs, of npz files and pictures
 * fails once: a clean status each time, nothing half-written under a final name, nothing leaked
 * (with AddressSanitizer), and all goes well again afterwards. */
#define SUPPORT_FAIL_ALLOC
#include "images.h"

#include "ddpm/dataset.h"
#include "npz.h"
#include "pack.h"
#include "picture.h"

enum { MOST = 3000 };

typedef struct {
    char photos[SUPPORT_PATH], idx[SUPPORT_PATH], npz[SUPPORT_PATH], pack[SUPPORT_PATH],
        out[SUPPORT_PATH];
} places;

/* Runs `job` with the n-th allocation failing, for n = 1, 2, .. until none fails. */
static void for_every_allocation(ddpm_status (*job)(const places *), const places *p)
{
    for (long n = 1; n < MOST; n++) {
        fail_nth_alloc(n, false);
        const ddpm_status s = job(p);
        const long failures = support_alloc_failures;
        fail_no_alloc();
        if (s) {
            /* in the decoder's process it is that image which is rejected; libraries may name it
             * otherwise */
            assert_true(s == DDPM_NOMEM || s == DDPM_FORMAT || s == DDPM_IO || s == DDPM_BUG);
            assert_true(strlen(ddpm_last_error()) > 0);
            assert_int_not_equal(access(p->out, F_OK), 0);
        }
        unlink(p->out);
        if (s == DDPM_OK && failures == 0) {
            assert_true(n > 1);
            return;
        }
    }
    fail_msg("still failing after %d allocations", MOST);
}

static ddpm_status job_folder(const places *p)
{
    const char *source = p->photos;
    pack_report r;
    const pack_options o = {.labels = PACK_LABELS_FOLDER,
                            .threads = 1,
                            .height = 4,
                            .width = 4,
                            .fit = PACK_FIT_CROP,
                            .skip_bad = false};
    return pack_run(&source, 1, p->out, &o, NULL, NULL, &r);
}

static ddpm_status job_idx(const places *p)
{
    const char *source = p->idx;
    pack_report r;
    return pack_run(&source, 1, p->out,
                    &(pack_options){.height = 2, .width = 2, .fit = PACK_FIT_PAD}, NULL, NULL, &r);
}

static ddpm_status job_npz(const places *p)
{
    const char *source = p->npz;
    pack_report r;
    return pack_run(&source, 1, p->out, &(pack_options){.channels = 3}, NULL, NULL, &r);
}

static ddpm_status job_dataset(const places *p)
{
    ddpm_dataset *ds = NULL;
    ddpm_batch b;
    ddpm_status s = ddpm_dataset_open(
        p->pack, &(ddpm_dataset_options){.batch = 5, .threads = 2, .validation = 2}, &ds);
    for (uint64_t step = 0; !s && step < 3; step++)
        s = ddpm_dataset_next(ds, step, &b);
    ddpm_dataset_close(ds);
    return s;
}

static ddpm_status job_write_npz(const places *p)
{
    npz_writer *w = NULL;
    ddpm_status s = npz_create(p->out, &w);
    if (!s) s = npz_begin(w, "arr_0", "u1", 1, (const int64_t[]){5});
    if (!s) s = npz_put(w, "12345", 5);
    if (!s) return npz_finish(w);
    npz_abandon(w);
    return s;
}

static ddpm_status job_picture(const places *p)
{
    const uint8_t images[48] = {0};
    return picture_grid(p->out, images, 3, 4, 4, 1, 0);
}

static ddpm_status job_animation(const places *p)
{
    const uint8_t images[48] = {0};
    picture_animation *a = NULL;
    ddpm_status s = picture_animation_create(p->out, 3, 4, 4, 1, 0, &a);
    if (!s) s = picture_animation_add(a, images, 50);
    if (!s) return picture_animation_finish(a);
    picture_animation_abandon(a);
    return s;
}

static void test_every_allocation(void **state)
{
    places p;
    char labels[SUPPORT_PATH];
    support_join(p.photos, *state, "photos");
    support_join(p.idx, *state, "a-images-idx3-ubyte");
    support_join(labels, *state, "a-labels-idx1-ubyte");
    support_join(p.npz, *state, "x.npz");
    support_join(p.pack, *state, "pack.safetensors");
    support_join(p.out, *state, "out");
    png_write_file(p.photos, "a/1.png", 9, 8, (const uint8_t[]){1, 2, 3});
    png_write_file(p.photos, "b/1.png", 4, 4, (const uint8_t[]){1, 2, 3});
    idx_write_files(p.idx, labels, 12, 3, 3);
    places other = p;
    memcpy(other.out, p.pack, sizeof other.out);
    assert_ok(job_idx(&other));
    npz_writer *w = NULL;
    assert_ok(npz_create(p.npz, &w));
    assert_ok(npz_begin(w, "arr_0", "u1", 4, (const int64_t[]){2, 3, 3, 1}));
    assert_ok(npz_put(w, "123456789987654321", 18));
    assert_ok(npz_begin(w, "arr_1", "u1", 1, (const int64_t[]){2}));
    assert_ok(npz_put(w, "\1\0", 2));
    assert_ok(npz_finish(w));

    for_every_allocation(job_folder, &p);
    for_every_allocation(job_idx, &p);
    for_every_allocation(job_npz, &p);
    for_every_allocation(job_dataset, &p);
    for_every_allocation(job_write_npz, &p);
    for_every_allocation(job_picture, &p);
    for_every_allocation(job_animation, &p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_allocation, support_setup, support_teardown),
    };
    return cmocka_run_group_tests_name("alloc_data", tests, NULL, NULL);
}
