/* test_pack.c - from each kind of source to a pack: pixels, labels, rejections, stop and going on.
 */
#include "images.h"

#include "pack.h"
#include "pack_pool.h"
#include "pack_store.h"
#include "safetensors.h"

static const uint8_t RED[3] = {200, 10, 20}, BLUE[3] = {1, 2, 250};

static ddpm_status pack_one(const char *source, const char *output, const pack_options *o,
                            pack_report *r)
{
    return pack_run(&source, 1, output, o, NULL, NULL, r);
}

typedef struct {
    int64_t n, h, w, c;
    uint8_t *images;
    int64_t *labels;
    char *classes; /* JSON */
    char source[33];
} content;

static content content_read(const char *path)
{
    st_file *f = NULL;
    assert_ok(st_open(path, &f));
    assert_ok(st_verify(f));
    const st_tensor *t = st_find(f, "images"), *l = st_find(f, "labels");
    assert_non_null(t);
    assert_string_equal(st_metadata(f, "ddpm.kind"), "pack");
    content c = {.n = t->shape[0], .h = t->shape[1], .w = t->shape[2], .c = t->shape[3]};
    c.images = malloc(t->bytes);
    assert_ok(st_read(f, t, 0, c.images, t->bytes));
    if (l) {
        c.labels = malloc(l->bytes);
        assert_ok(st_read_i64(f, l, c.labels));
        c.classes = strdup(st_metadata(f, "ddpm.classes"));
    }
    snprintf(c.source, sizeof c.source, "%s", st_metadata(f, "ddpm.source"));
    st_close(f);
    return c;
}

static void content_free(content *c)
{
    free(c->images);
    free(c->labels);
    free(c->classes);
}

/* ---- folders ---- */

static const char *folder_make(const char *dir, char path[SUPPORT_PATH])
{
    support_join(path, dir, "photos");
    png_write_file(path, "zebra/a_1.png", 4, 6, RED);
    png_write_file(path, "apple/deep/b_2.PNG", 4, 6, BLUE);
    png_write_file(path, "apple/b_1.dat", 4, 6, RED); /* the name says nothing */
    return path;
}

static void test_folder_classes(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    folder_make(*state, dir);
    support_join(out, *state, "p.safetensors");
    assert_ok(pack_one(dir, out, &(pack_options){.labels = PACK_LABELS_FOLDER, .threads = 2}, &r));
    assert_int_equal(r.packed, 3);
    assert_int_equal(r.rejected, 0);
    assert_int_equal(r.height, 6);
    assert_int_equal(r.width, 4);
    assert_int_equal(r.channels, 3);
    assert_int_equal(r.n_classes, 2);
    content c = content_read(out);
    assert_string_equal(c.classes, "[\"apple\",\"zebra\"]");
    assert_int_equal(c.labels[0], 0);
    assert_int_equal(c.labels[1], 0);
    assert_int_equal(c.labels[2], 1);
    assert_memory_equal(c.images, RED, 3); /* apple/b_1 before apple/deep */
    assert_memory_equal(c.images + 72, BLUE, 3);
    assert_memory_equal(c.images + 2 * 72 + 69, RED, 3);
    content_free(&c);
    char part[SUPPORT_PATH];
    assert_int_not_equal(access(support_join(part, *state, "p.safetensors.part"), F_OK), 0);
    assert_int_not_equal(access(support_join(part, *state, "p.safetensors.rejected.txt"), F_OK), 0);
}

static void test_prefix_and_csv(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH], csv[SUPPORT_PATH];
    pack_report r;
    folder_make(*state, dir);
    support_join(out, *state, "p.safetensors");
    assert_ok(pack_one(dir, out, &(pack_options){.labels = PACK_LABELS_PREFIX}, &r));
    content c = content_read(out);
    assert_string_equal(c.classes, "[\"a\",\"b\"]");
    assert_int_equal(c.labels[0], 1);
    assert_int_equal(c.labels[2], 0);
    content_free(&c);
    const char text[] =
        "file,label\r\napple/b_1.dat,7\r\n\"zebra/a_1.png\",\"x y\"\napple/deep/b_2.PNG,7\n";
    support_join(csv, dir, "labels.csv"); /* among the images, and no image */
    support_write_file(csv, text, strlen(text));
    assert_ok(pack_one(dir, out, &(pack_options){.labels = PACK_LABELS_CSV, .csv = csv}, &r));
    c = content_read(out);
    assert_string_equal(c.classes, "[\"7\",\"x y\"]");
    assert_int_equal(c.labels[2], 1);
    content_free(&c);
    support_write_file(csv, "apple/b_1.dat,1\napple/b_1.dat,2\n", 32);
    assert_status(pack_one(dir, out, &(pack_options){.labels = PACK_LABELS_CSV, .csv = csv}, &r),
                  DDPM_FORMAT);
    assert_message("labels.csv:2");
    support_write_file(csv, "no comma\n", 9);
    assert_status(pack_one(dir, out, &(pack_options){.labels = PACK_LABELS_CSV, .csv = csv}, &r),
                  DDPM_FORMAT);
    assert_message("labels.csv:1");
    /* a file that the list leaves out is rejected */
    support_write_file(csv, "apple/b_1.dat,1\n", 16);
    const pack_options o = {.labels = PACK_LABELS_CSV, .csv = csv, .skip_bad = true};
    assert_ok(pack_one(dir, out, &o, &r));
    assert_int_equal(r.packed, 1);
    assert_int_equal(r.rejected, 2);
}

static void test_several_folders(void **state)
{
    char a[SUPPORT_PATH], b[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    support_join(out, *state, "p.safetensors");
    png_write_file(support_join(a, *state, "a"), "z/1.png", 2, 2, RED);
    png_write_file(support_join(b, *state, "b"), "y/1.png", 2, 2, BLUE);
    const char *sources[] = {a, b};
    assert_ok(pack_run(sources, 2, out,
                       &(pack_options){.labels = PACK_LABELS_FOLDER, .channels = 1}, NULL, NULL,
                       &r));
    content c = content_read(out);
    assert_int_equal(c.c, 1);
    assert_int_equal(c.images[0], 68); /* .299 * 200 + .587 * 10 + .114 * 20 = 67.95 */
    assert_string_equal(c.classes, "[\"y\",\"z\"]");
    assert_int_equal(c.labels[0], 1);
    assert_int_equal(c.labels[1], 0);
    content_free(&c);
}

/* ---- rejections ---- */

static void bad_files(const char *dir)
{
    char path[SUPPORT_PATH];
    size_t n = 0;
    char *png = support_read_file("golden_images/source_61x97.png", &n);
    png_write_file(dir, "good.png", 97, 61, RED);
    support_write_file(support_join(path, dir, "cut.png"), png, n / 2);
    png[n / 2] ^= 1;
    support_write_file(support_join(path, dir, "flipped.png"), png, n);
    support_write_file(support_join(path, dir, "empty.jpg"), "", 0);
    support_write_file(support_join(path, dir, "notes.txt"), "hello", 5);
    support_write_file(support_join(path, dir, ".hidden"), "hello", 5);
    assert_int_equal(mkfifo(support_join(path, dir, "pipe.png"), 0600), 0);
    assert_int_equal(symlink("/dev/zero", support_join(path, dir, "zero.png")), 0);
    assert_int_equal(symlink("..", support_join(path, dir, "loop")), 0);
    assert_int_equal(symlink("nowhere", support_join(path, dir, "dangling.png")), 0);
    png_write_file(dir, "line\nbreak.png", 5, 5, RED);
    free(png);
}

static void test_bad_files_are_listed(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH], list[SUPPORT_PATH];
    pack_report r;
    bad_files(support_join(dir, *state, "photos"));
    support_join(out, *state, "p.safetensors");
    support_join(list, *state, "p.safetensors.rejected.txt");
    pack_options o = {.height = 61, .width = 97};
    assert_status(pack_one(dir, out, &o, &r), DDPM_FORMAT);
    assert_message("9 of 10");
    assert_message("--skip-bad");
    assert_int_not_equal(access(out, F_OK), 0);
    char *text = support_read_file(list, NULL);
    static const char *const expected[] = {
        "cut short",
        "cut.png\n",
        "no such file",
        "CRC",
        "flipped.png\n",
        "is empty\t",
        "is neither PNG nor JPEG\t",
        "is not a regular file\t",
        "pipe.png\n",
        "zero.png\n",
        "loop\n",
        "dangling.png\n",
        "line\\x0abreak.png\n",
        "is 5 x 5 pixels",
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strcasestr(text, expected[i])) fail_msg("\"%s\" is not in\n%s", expected[i], text);
    assert_null(strstr(text, "good.png"));
    assert_null(strstr(text, "hidden"));
    int lines = 0;
    for (const char *p = text; *p; p++)
        lines += *p == '\n';
    assert_int_equal(lines, 9);
    free(text);
    o.skip_bad = true;
    assert_ok(pack_one(dir, out, &o, &r));
    assert_int_equal(r.packed, 1);
    assert_int_equal(r.rejected, 9);
    content c = content_read(out);
    assert_memory_equal(c.images, RED, 3);
    content_free(&c);
}

static void test_nothing_left(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH], file[SUPPORT_PATH];
    pack_report r;
    support_join(out, *state, "p.safetensors");
    support_join(dir, *state, "photos");
    mkdir(dir, 0777);
    assert_status(pack_one(dir, out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_message("no files");
    support_write_file(support_join(file, dir, "a.png"), "x", 1);
    assert_status(pack_one(dir, out, &(pack_options){.skip_bad = true}, &r), DDPM_FORMAT);
    assert_status(
        pack_one(dir, out,
                 &(pack_options){.skip_bad = true, .height = 4, .width = 4, .channels = 3}, &r),
        DDPM_FORMAT);
    assert_message("all 1");
    assert_status(pack_one(file, out, &(pack_options){.height = 4, .width = 4, .channels = 3}, &r),
                  DDPM_FORMAT);
    assert_status(pack_one("/no/such/place", out, &(pack_options){0}, &r), DDPM_NOINPUT);
    assert_status(pack_one("golden_images/grey.jpg", "/no/such/place/p", &(pack_options){0}, &r),
                  DDPM_CANTCREAT);
    assert_message("does not exist");
    assert_status(pack_one("/dev/zero", out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_status(pack_one(dir, out, &(pack_options){.channels = 2}, &r), DDPM_ARG);
    assert_status(pack_one(dir, out, &(pack_options){.height = 99999, .width = 5}, &r), DDPM_ARG);
}

/* ---- sizes ---- */

static void test_fits(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    support_join(out, *state, "p.safetensors");
    png_write_file(support_join(dir, *state, "photos"), "wide.png", 30, 10, RED);
    png_write_file(dir, "tall.png", 5, 20, BLUE);
    assert_ok(
        pack_one(dir, out, &(pack_options){.height = 8, .width = 12, .fit = PACK_FIT_CROP}, &r));
    content c = content_read(out);
    assert_int_equal(c.n, 2);
    assert_int_equal(c.h, 8);
    assert_int_equal(c.w, 12);
    for (int i = 0; i < 8 * 12; i++) {
        assert_memory_equal(c.images + 3 * i, BLUE, 3);
        assert_memory_equal(c.images + 3 * (96 + i), RED, 3);
    }
    content_free(&c);
    assert_ok(
        pack_one(dir, out, &(pack_options){.height = 20, .width = 20, .fit = PACK_FIT_PAD}, &r));
    c = content_read(out);
    assert_int_equal(c.images[2], 0); /* beside the tall one */
    assert_memory_equal(c.images + 3 * 9, BLUE, 3);
    content_free(&c);
}

/* ---- idx, CIFAR, npz ---- */

static void gzip_file(const char *from, const char *to)
{
    size_t n = 0;
    char *data = support_read_file(from, &n);
    gzFile f = gzopen(to, "wb");
    assert_non_null(f);
    assert_int_equal(gzwrite(f, data, (unsigned)n), n);
    assert_int_equal(gzclose(f), Z_OK);
    free(data);
}

static void test_idx(void **state)
{
    char images[SUPPORT_PATH], labels[SUPPORT_PATH], packed[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    support_join(out, *state, "p.safetensors");
    support_join(images, *state, "t10k-images-idx3-ubyte");
    support_join(labels, *state, "t10k-labels-idx1-ubyte");
    idx_write_files(images, labels, 37, 5, 3);
    assert_ok(pack_one(images, out, &(pack_options){0}, &r));
    content c = content_read(out);
    assert_int_equal(c.n, 37);
    assert_int_equal(c.h, 5);
    assert_int_equal(c.c, 1);
    assert_int_equal(c.images[15 * 36 + 14], 36);
    assert_int_equal(c.labels[36], 6);
    assert_string_equal(c.classes, "[\"0\",\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]");
    content_free(&c);
    /* gzipped, with labels that are not; as three channels; the first 30 */
    support_join(packed, *state, "t10k-images-idx3-ubyte.gz");
    gzip_file(images, packed);
    assert_ok(pack_one(packed, out, &(pack_options){.channels = 3, .limit = 30}, &r));
    c = content_read(out);
    assert_int_equal(c.n, 30);
    assert_int_equal(c.images[3 * 15 * 29], 29);
    assert_int_equal(c.labels[29], 9);
    content_free(&c);
}

static void test_idx_damage(void **state)
{
    char images[SUPPORT_PATH], labels[SUPPORT_PATH], packed[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    size_t n = 0;
    support_join(out, *state, "p.safetensors");
    support_join(images, *state, "a-images-idx3-ubyte");
    support_join(labels, *state, "a-labels-idx1-ubyte");
    support_join(packed, *state, "b-images-idx3-ubyte.gz");
    idx_write_files(images, labels, 20, 4, 4);
    gzip_file(images, packed);
    char *file = support_read_file(images, &n);
    support_write_file(images, file, n - 1);
    assert_status(pack_one(images, out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_message("cut short");
    char *longer = calloc(1, n + 1);
    assert_true(longer && n > 8);
    memcpy(longer, file, n);
    support_write_file(images, longer, n + 1);
    assert_status(pack_one(images, out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_message("after the last");
    memcpy(longer, file, n);
    png_put32((uint8_t *)longer + 4, 0x7F7F7F7F); /* two thousand million images */
    support_write_file(images, longer, n);
    assert_status(pack_one(images, out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_message("more than the file can hold");
    support_write_file(images, file, n);
    support_write_file(labels, "\0\0\x08\1\0\0\0\x13", 8);
    assert_status(pack_one(images, out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_message("19 labels for 20 images");
    free(file);
    free(longer);
    file = support_read_file(packed, &n);
    int unseen = 0;
    for (size_t i = 10; i < n; i++) { /* the data, its CRC-32 and its length */
        file[i] ^= 4;
        support_write_file(packed, file, n);
        const ddpm_status s = pack_one(packed, out, &(pack_options){0}, &r);
        assert_true(s == DDPM_FORMAT || (s == DDPM_OK && i == n - 9));
        unseen += s == DDPM_OK;
        file[i] ^= 4;
    }
    assert_in_range(unseen, 0,
                    1); /* the last byte of the data may end with bits that mean nothing */
    free(file);
    if (unseen) unlink(out);
    assert_int_not_equal(access(out, F_OK), 0);
}

static void test_cifar(void **state)
{
    char ten[SUPPORT_PATH], hundred[SUPPORT_PATH], names[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    uint8_t batch[3 * 3074];
    support_join(out, *state, "p.safetensors");
    support_join(ten, *state, "data_batch_1.bin");
    support_join(hundred, *state, "train.bin");
    for (int i = 0; i < 3; i++) {
        uint8_t *p = batch + i * 3073;
        p[0] = (uint8_t)(3 * i);
        memset(p + 1, 10 + i, 1024);
        memset(p + 1025, 20 + i, 1024);
        memset(p + 2049, 30 + i, 1024);
    }
    support_write_file(ten, batch, 3 * 3073);
    assert_ok(pack_one(ten, out, &(pack_options){0}, &r));
    content c = content_read(out);
    assert_int_equal(c.h, 32);
    assert_int_equal(c.labels[2], 6);
    assert_memory_equal(c.images + 2 * 3072 + 3069, ((uint8_t[]){12, 22, 32}), 3);
    content_free(&c);
    const char list[] = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
    support_write_file(support_join(names, *state, "batches.meta.txt"), list, strlen(list));
    assert_ok(pack_one(ten, out, &(pack_options){0}, &r));
    c = content_read(out);
    assert_non_null(strstr(c.classes, "\"frog\""));
    content_free(&c);
    for (int i = 0; i < 3; i++) {
        uint8_t *p = batch + i * 3074;
        memset(p, 5 + i, 3074);
        p[0] = 19;
        p[1] = (uint8_t)(97 + i);
    }
    support_write_file(hundred, batch, 3 * 3074);
    assert_ok(pack_one(hundred, out, &(pack_options){0}, &r));
    assert_int_equal(r.n_classes, 100);
    c = content_read(out);
    assert_int_equal(c.labels[1], 98); /* the fine one */
    assert_int_equal(c.images[3072], 6);
    content_free(&c);
    support_write_file(hundred, batch, 3 * 3074 - 1);
    assert_status(pack_one(hundred, out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_message("train.bin");
    batch[1] = 100;
    support_write_file(hundred, batch, 3074);
    assert_status(pack_one(hundred, out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_message("label 100");
}

static void test_npz(void **state)
{
    char out[SUPPORT_PATH];
    pack_report r;
    support_join(out, *state, "p.safetensors");
    assert_status(pack_one("golden_images/numpy.npz", out, &(pack_options){0}, &r), DDPM_FORMAT);
    assert_message("label -1");
    const char *sources[] = {"golden_images/numpy.npz", "golden_images/grey.jpg"};
    assert_status(pack_run(sources, 2, out, &(pack_options){0}, NULL, NULL, &r), DDPM_FORMAT);
    sources[0] = "golden_images/source_61x97.png";
    sources[1] = "golden_images/numpy_images.npz";
    assert_status(pack_run(sources, 2, out, &(pack_options){0}, NULL, NULL, &r), DDPM_ARG);
    assert_message("different kinds");
    assert_ok(pack_one(sources[1], out, &(pack_options){0}, &r));
    content c = content_read(out);
    assert_int_equal(c.n, 2);
    assert_int_equal(c.h, 3);
    assert_int_equal(c.w, 4);
    for (int i = 0; i < 24; i++)
        assert_int_equal(c.images[i], i % 5);
    assert_null(c.labels);
    content_free(&c);
}

/* ---- shards, identity, stop ---- */

static void test_shards_hold_the_same(void **state)
{
    char images[SUPPORT_PATH], labels[SUPPORT_PATH], out[SUPPORT_PATH], shard[SUPPORT_PATH];
    pack_report r;
    support_join(images, *state, "images-idx3-ubyte");
    support_join(labels, *state, "labels-idx1-ubyte");
    support_join(out, *state, "shards");
    idx_write_files(images, labels, 25, 10, 10);
    assert_ok(pack_one(images, out, &(pack_options){.shard_bytes = 1100},
                       &r)); /* ten of 108 bytes each */
    assert_int_equal(support_count_entries(out), 3);
    for (int k = 0; k < 3; k++) {
        char name[64];
        snprintf(name, sizeof name, "pack-%05d-of-00003.safetensors", k);
        content c = content_read(support_join(shard, out, name));
        assert_int_equal(c.n, k < 2 ? 10 : 5);
        assert_int_equal(c.images[0], 10 * k);
        assert_int_equal(c.labels[4], 4);
        content_free(&c);
    }
    assert_status(pack_one(images, out, &(pack_options){0}, &r), DDPM_CANTCREAT);
    assert_message("exists");
}

static void test_source_hash(void **state)
{
    char a[SUPPORT_PATH], b[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    support_join(out, *state, "p.safetensors");
    png_write_file(support_join(a, *state, "a"), "x/1.png", 4, 4, RED);
    png_write_file(support_join(b, *state, "b"), "x/1.png", 4, 4, RED);
    assert_ok(pack_one(a, out, &(pack_options){0}, &r));
    content first = content_read(out);
    assert_ok(pack_one(b, out, &(pack_options){0}, &r));
    content second = content_read(out);
    assert_string_equal(first.source, second.source); /* where the folder lies does not matter */
    content_free(&second);
    assert_ok(pack_one(b, out, &(pack_options){.channels = 1}, &r));
    second = content_read(out);
    assert_string_not_equal(first.source, second.source);
    content_free(&first);
    content_free(&second);
}

/* What a run leaves behind that was stopped after `count` images. */
static void part_leave(const char *source, const char *output, const pack_options *o, int64_t count)
{
    pack_input in;
    pack_store *st = NULL;
    pack_pool *pool = NULL;
    progress bar;
    progress_begin(&bar, NULL, "pack", "img", count, 0);
    assert_ok(pack_input_open(&in, &source, 1, o));
    assert_ok(pack_store_open(&in, output, &st));
    assert_ok(pack_pool_create(&in, 2, (int)o->fit, &pool));
    int64_t room = 0, done = 0;
    const int64_t first = pack_store_decided(st);
    uint8_t *images = pack_store_room(st, &room);
    char **reasons = calloc((size_t)count, sizeof *reasons);
    assert_in_range(count, 1, room);
    assert_ok(pack_pool_run(pool, first, count, images, reasons, NULL, &bar, &done));
    assert_int_equal(done, count);
    assert_ok(pack_store_take(st, count, reasons));
    assert_ok(pack_store_flush(st, true));
    assert_int_equal(pack_store_decided(st), first + count);
    free(reasons);
    pack_pool_free(pool);
    pack_store_close(st, false);
    pack_input_close(&in);
}

static const char *numbered_make(const char *dir, char path[SUPPORT_PATH], int n)
{
    support_join(path, dir, "photos");
    for (int i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "%d/%04d.png", i / 20, i);
        png_write_file(path, name, 3, 3, (const uint8_t[]){(uint8_t)i, 5, 7});
    }
    return path;
}

static void test_goes_on(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH], part[SUPPORT_PATH], whole[SUPPORT_PATH];
    pack_report r;
    numbered_make(*state, dir, 60);
    support_write_file(support_join(part, dir, "0/bad.png"), "x", 1);
    support_write_file(support_join(part, dir, "2/bad.png"), "y", 1);
    support_join(out, *state, "p.safetensors");
    support_join(part, *state, "p.safetensors.part");
    support_join(whole, *state, "whole.safetensors");
    const pack_options o = {.labels = PACK_LABELS_FOLDER, .threads = 2, .skip_bad = true};
    assert_ok(pack_one(dir, whole, &o, &r));
    part_leave(dir, out, &o, 25);
    part_leave(dir, out, &o, 9);
    assert_int_equal(support_count_entries(part), 3); /* two parts and the lock */
    assert_ok(pack_one(dir, out, &o, &r));
    assert_int_equal(r.packed, 60);
    assert_int_equal(r.rejected, 2);
    size_t n = 0, m = 0;
    char *a = support_read_file(out, &n), *b = support_read_file(whole, &m);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n); /* as if it had never been stopped */
    free(a);
    free(b);
    assert_int_not_equal(access(part, F_OK), 0);
}

/* A part that was damaged, or is of other files or options, is not used. */
static void test_parts_of_another_run(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH], part[SUPPORT_PATH];
    pack_report r;
    numbered_make(*state, dir, 30);
    support_join(out, *state, "p.safetensors");
    support_join(part, *state, "p.safetensors.part/part-000000000000.safetensors");
    for (int change = 0; change < 3; change++) {
        pack_options o = {.threads = 1};
        part_leave(dir, out, &o, 20);
        size_t n = 0;
        char *bytes = support_read_file(part, &n);
        if (change == 0) { /* the first image changes, of the same size */
            png_write_file(dir, "0/0000.png", 3, 3, BLUE);
        } else if (change == 1) {
            bytes[n - 1] ^= 1;
            support_write_file(part, bytes, n);
        } else {
            o.channels = 1;
        }
        free(bytes);
        assert_ok(pack_one(dir, out, &o, &r));
        content c = content_read(out);
        assert_int_equal(c.n, 30);
        if (change == 2)
            assert_int_equal(c.images[9 * 29], 12); /* .299 * 29 + .587 * 5 + .114 * 7 = 12.4 */
        else
            assert_memory_equal(c.images, BLUE, 3);
        if (change < 2) assert_memory_equal(c.images + 27 * 19, ((const uint8_t[]){19, 5, 7}), 3);
        content_free(&c);
        unlink(out);
    }
}

static void test_stop(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    const volatile int stop = 1;
    const char *source = numbered_make(*state, dir, 30);
    support_join(out, *state, "p.safetensors");
    assert_status(pack_run(&source, 1, out, &(pack_options){0}, NULL, &stop, &r), DDPM_STOPPED);
    assert_message("run again");
    part_leave(dir, out, &(pack_options){0}, 30); /* all decoded, the pack not written */
    assert_status(pack_run(&source, 1, out, &(pack_options){0}, NULL, &stop, &r), DDPM_STOPPED);
    assert_int_not_equal(access(out, F_OK), 0);
    assert_ok(pack_one(dir, out, &(pack_options){0}, &r));
    assert_int_equal(r.packed, 30);
}

static void test_one_at_a_time(void **state)
{
    char dir[SUPPORT_PATH], out[SUPPORT_PATH];
    pack_report r;
    pack_input in;
    pack_store *st = NULL;
    const char *source = numbered_make(*state, dir, 3);
    support_join(out, *state, "p.safetensors");
    assert_ok(pack_input_open(&in, &source, 1, &(pack_options){0}));
    assert_ok(pack_store_open(&in, out, &st));
    assert_status(pack_one(dir, out, &(pack_options){0}, &r), DDPM_LOCKED);
    pack_store_close(st, false);
    pack_input_close(&in);
    assert_ok(pack_one(dir, out, &(pack_options){0}, &r));
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, support_setup, support_teardown)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_folder_classes),
        IN_FOLDER(test_prefix_and_csv),
        IN_FOLDER(test_several_folders),
        IN_FOLDER(test_bad_files_are_listed),
        IN_FOLDER(test_nothing_left),
        IN_FOLDER(test_fits),
        IN_FOLDER(test_idx),
        IN_FOLDER(test_idx_damage),
        IN_FOLDER(test_cifar),
        IN_FOLDER(test_npz),
        IN_FOLDER(test_shards_hold_the_same),
        IN_FOLDER(test_source_hash),
        IN_FOLDER(test_goes_on),
        IN_FOLDER(test_parts_of_another_run),
        IN_FOLDER(test_stop),
        IN_FOLDER(test_one_at_a_time),
    };
    return cmocka_run_group_tests_name("pack", tests, NULL, NULL);
}
