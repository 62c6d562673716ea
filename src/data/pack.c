/* pack.c - `ddpm pack`: image files once, in a sandbox, to the file that training reads.
 *
 * Job        sources to a pack, in the order of the sources; every file that is not used is named
 *            with the reason.
 * Method     pack_input.c says what there is, pack_pool.c decodes it block by block in parallel
 *            children (or the source gives its pixels), pack_store.c keeps it and writes the pack
 *            when all is decided. A rejection fails the run, after all of them were found, unless
 *            skip_bad allows them.
 * Cost       see bench/data: decoding is all there is to it.
 * Rejected   decoding in the training job: its speed, its memory and its safety would hang on the
 *            image files. */
#include "pack.h"

#include "commit.h"
#include "fail.h"
#include "pack_input.h"
#include "pack_pool.h"
#include "pack_store.h"
#include "source.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, SHOWN = 10 };

static ddpm_status options_check(const pack_options *o, int n_sources)
{
    REQUIRE(n_sources >= 1, ARG, "no source");
    REQUIRE(o->height >= 0 && o->width >= 0 && o->height <= SOURCE_MAX_SIDE &&
                o->width <= SOURCE_MAX_SIDE && !o->height == !o->width,
            ARG, "size %d x %d; sides are 1 .. %d", o->height, o->width, SOURCE_MAX_SIDE);
    REQUIRE(o->channels == 0 || o->channels == 1 || o->channels == 3, ARG, "%d channels; 1 or 3",
            o->channels);
    REQUIRE(o->limit >= 0, ARG, "a limit of %" PRId64 " images", o->limit);
    return DDPM_OK;
}

/* One block: decoded, or read from its source. */
static ddpm_status block_run(pack_input *in, pack_store *st, pack_pool *pool, const pack_options *o,
                             const volatile int *stop, progress *bar, char **reasons)
{
    const int64_t first = pack_store_decided(st);
    int64_t count = 0, done = 0;
    uint8_t *images = pack_store_room(st, &count);
    if (count > BLOCK) count = BLOCK;
    if (count > in->n - first) count = in->n - first;
    ddpm_status s = DDPM_OK;
    if (pool) {
        s = pack_pool_run(pool, first, count, images, reasons, stop, bar, &done);
    } else {
        s = pack_input_read(in, first, count, (int)o->fit, images, reasons);
        done = s ? 0 : count;
    }
    if (!s) s = pack_store_take(st, done, reasons);
    for (int64_t i = 0; i < count; i++) {
        free(reasons[i]);
        reasons[i] = NULL;
    }
    progress_update(bar, pack_store_decided(st), NULL);
    return s ? s : pack_store_flush(st, false);
}

static ddpm_status decode_all(pack_input *in, pack_store *st, const pack_options *o,
                              const log_sink *sink, const volatile int *stop)
{
    pack_pool *pool = NULL;
    ddpm_status s = DDPM_OK;
    progress bar;
    char **reasons = calloc(BLOCK, sizeof *reasons);
    REQUIRE(reasons, NOMEM, "%d reasons", BLOCK);
    progress_begin(&bar, sink, "pack", "img", in->n, pack_store_decided(st));
    if (in->needs_decoder && pack_store_decided(st) < in->n) {
        TRY_GOTO(done, pack_pool_create(in, o->threads, (int)o->fit, &pool));
        if (!pack_pool_is_confined(pool))
            log_line(sink, "warning: no system call filter here: the decoders have limits, but "
                           "could open files");
    }
    while (!s && pack_store_decided(st) < in->n) {
        if (stop && *stop)
            FAIL_GOTO(done, STOPPED,
                      "stopped after %" PRId64 " of %" PRId64 " images; run again to go on",
                      pack_store_decided(st), in->n);
        s = block_run(in, st, pool, o, stop, &bar, reasons);
    }
done:
    progress_end(&bar, NULL);
    pack_pool_free(pool);
    free(reasons);
    if (s != DDPM_STOPPED) return s;
    const ddpm_status kept = pack_store_flush(st, true);
    return kept ? kept
                : FAIL(STOPPED,
                       "stopped after %" PRId64 " of %" PRId64 " images; run again to go on",
                       pack_store_decided(st), in->n);
}

/* ---- what was rejected ---- */

static void rejected_path(const char *output, char dst[PATH_MAX])
{
    size_t n = strlen(output);
    while (n > 1 && output[n - 1] == '/')
        n--;
    snprintf(dst, PATH_MAX, "%.*s.rejected.txt", (int)(n < PATH_MAX - 32 ? n : PATH_MAX - 32),
             output);
}

/* Names of files may hold line breaks and escapes; in a list of lines they may not. */
static void print_plain(FILE *f, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p < 32 || *p == 127)
            fprintf(f, "\\x%02x", *p);
        else
            fputc(*p, f);
    }
}

static const char *image_name(const pack_input *in, int64_t image, char dst[64])
{
    if (in->needs_decoder) return pack_input_path(in, image);
    snprintf(dst, 64, "image %" PRId64, image);
    return dst;
}

static ddpm_status rejected_write(const pack_input *in, const pack_store *st, const char *path,
                                  const log_sink *sink)
{
    const int64_t n = pack_store_rejected(st);
    if (n == 0) {
        REQUIRE(unlink(path) == 0 || errno == ENOENT, CANTCREAT, "%s: %s", path, strerror(errno));
        return DDPM_OK;
    }
    char *text = NULL, number[64];
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    REQUIRE(f, NOMEM, "the list of rejections");
    for (int64_t i = 0; i < n; i++) {
        int64_t image = 0;
        const char *reason = pack_store_reason(st, i, &image);
        print_plain(f, reason);
        fputc('\t', f);
        print_plain(f, image_name(in, image, number));
        fputc('\n', f);
        if (i < SHOWN) log_line(sink, "rejected: %s: %s", image_name(in, image, number), reason);
    }
    if (n > SHOWN) log_line(sink, "and %" PRId64 " more, listed in %s", n - SHOWN, path);
    const bool has_error = ferror(f);
    const bool is_whole = fclose(f) == 0 && !has_error;
    const ddpm_status s =
        is_whole ? commit_bytes(path, text, bytes) : FAIL(NOMEM, "the list of rejections");
    free(text);
    return s;
}

/* ---- the run ---- */

static ddpm_status store_run(pack_input *in, pack_store *st, const char *output,
                             const pack_options *o, const log_sink *sink, const volatile int *stop,
                             pack_report *report)
{
    char list[PATH_MAX];
    if (pack_store_decided(st))
        log_line(sink, "pack: %" PRId64 " of %" PRId64 " images are there from an earlier run",
                 pack_store_decided(st), in->n);
    TRY(decode_all(in, st, o, sink, stop));
    rejected_path(output, list);
    TRY(rejected_write(in, st, list, sink));
    const int64_t bad = pack_store_rejected(st);
    report->rejected = bad;
    REQUIRE(bad == 0 || o->skip_bad, FORMAT,
            "%" PRId64 " of %" PRId64
            " images were rejected, no pack was made; see %s, or leave them out "
            "with --skip-bad",
            bad, in->n, list);
    REQUIRE(pack_store_taken(st) > 0, FORMAT, "all %" PRId64 " images were rejected; see %s", in->n,
            list);
    return pack_store_write(st, o->shard_bytes, stop, &report->bytes);
}

ddpm_status pack_run(const char *const *sources, int n_sources, const char *output,
                     const pack_options *opts, const log_sink *sink, const volatile int *stop,
                     pack_report *report)
{
    const double start = monotonic_seconds();
    pack_input in;
    pack_store *st = NULL;
    *report = (pack_report){0};
    TRY(options_check(opts, n_sources));
    TRY(pack_input_open(&in, sources, n_sources, opts));
    ddpm_status s = pack_store_open(&in, output, &st);
    if (!s) s = store_run(&in, st, output, opts, sink, stop, report);
    if (!s) {
        report->packed = pack_store_taken(st);
        report->height = in.height;
        report->width = in.width;
        report->channels = in.channels;
        report->n_classes = in.n_classes;
        report->seconds = monotonic_seconds() - start;
    }
    pack_store_close(st, s == DDPM_OK);
    pack_input_close(&in);
    return s;
}
