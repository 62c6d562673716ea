/* picture.c - images side by side: a PNG, or the frames of an animated WebP.
 *
 * Job        what the eye judges a model by: previews, samples, the denoising as it goes.
 * Method     a grid of cells 2 pixels apart, every pixel enlarged to a square of whole size until
 *            the grid is 512 wide; the animation is lossless, so that noise is shown as noise.
 * Cost       the grid in memory (at most 2^28 pixels); frames are compressed as they come.
 * Rejected   smooth enlargement: it hides what the model made; GIF: 256 colours. */
#include "picture.h"

#include "commit.h"
#include "fail.h"
#include "png_write.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#ifdef DDPM_HAVE_WEBP
#include <webp/encode.h>
#include <webp/mux.h>
#endif

enum { GAP = 2, MIN_WIDTH = 512 };
static const int64_t MAX_PIXELS = INT64_C(1) << 28;

typedef struct {
    int n, h, w, c, columns, rows, scale;
    int height, width; /* of the grid, enlarged */
} grid_shape;

static ddpm_status grid_plan(int n, int h, int w, int c, int columns, grid_shape *out)
{
    REQUIRE(n >= 1 && h >= 1 && w >= 1 && (c == 1 || c == 3) && columns >= 0, SHAPE,
            "a picture of %d images %d x %d x %d in %d columns", n, h, w, c, columns);
    grid_shape g = {.n = n, .h = h, .w = w, .c = c, .columns = columns, .scale = 1};
    if (columns == 0)
        while ((int64_t)g.columns * g.columns < n)
            g.columns++;
    if (g.columns > n) g.columns = n;
    g.rows = (n - 1) / g.columns + 1;
    const int64_t width = ((int64_t)w + GAP) * g.columns - GAP;
    const int64_t height = ((int64_t)h + GAP) * g.rows - GAP;
    while (width * g.scale < MIN_WIDTH)
        g.scale++;
    REQUIRE(width <= MAX_PIXELS && height <= MAX_PIXELS &&
                width * g.scale <= MAX_PIXELS / (height * g.scale),
            SHAPE,
            "a picture of %d images %d x %d would have %" PRId64 " x %" PRId64
            " pixels, at most 2^28; show fewer images",
            n, h, w, height * g.scale, width * g.scale);
    g.height = (int)(height * g.scale);
    g.width = (int)(width * g.scale);
    *out = g;
    return DDPM_OK;
}

/* dst U8 [height, width, c]; gaps and empty cells are black. */
static void grid_draw(const grid_shape *g, const uint8_t *images, uint8_t *dst)
{
    const size_t c = (size_t)g->c, stride = (size_t)g->width * c;
    memset(dst, 0, stride * (size_t)g->height);
    for (int i = 0; i < g->n; i++) {
        const size_t top = (size_t)(i / g->columns) * (size_t)(g->h + GAP) * (size_t)g->scale;
        const size_t left = (size_t)(i % g->columns) * (size_t)(g->w + GAP) * (size_t)g->scale;
        const uint8_t *image = images + (size_t)i * (size_t)g->h * (size_t)g->w * c;
        for (size_t y = 0; y < (size_t)g->h * (size_t)g->scale; y++) {
            const uint8_t *row = image + y / (size_t)g->scale * (size_t)g->w * c;
            uint8_t *out = dst + (top + y) * stride + left * c;
            for (size_t x = 0; x < (size_t)g->w * (size_t)g->scale; x++)
                memcpy(out + x * c, row + x / (size_t)g->scale * c, c);
        }
    }
}

ddpm_status picture_grid(const char *path, const uint8_t *images, int n, int h, int w, int c,
                         int columns)
{
    grid_shape g = {0};
    TRY(grid_plan(n, h, w, c, columns, &g));
    uint8_t *pixels = malloc((size_t)g.height * (size_t)g.width * (size_t)c);
    REQUIRE(pixels, NOMEM, "%s: a grid of %d x %d", path, g.height, g.width);
    grid_draw(&g, images, pixels);
    uint8_t *png = NULL;
    size_t bytes = 0;
    ddpm_status s = png_encode(pixels, g.height, g.width, c, &png, &bytes);
    if (!s) s = commit_bytes(path, png, bytes);
    free(png);
    free(pixels);
    return s;
}

/* ---- the animation ---- */

#ifdef DDPM_HAVE_WEBP

enum { MAX_WEBP_SIDE = 16383 };

struct picture_animation {
    grid_shape grid;
    char *path;
    WebPAnimEncoder *encoder;
    uint8_t *pixels; /* the grid, [height, width, c] */
    uint8_t *rgb;    /* the same in three channels; equal to pixels where c is 3 */
    int now;         /* milliseconds */
};

ddpm_status picture_animation_create(const char *path, int n, int h, int w, int c, int columns,
                                     picture_animation **out)
{
    *out = NULL;
    ddpm_status s = DDPM_OK;
    grid_shape g = {0};
    TRY(grid_plan(n, h, w, c, columns, &g));
    REQUIRE(g.height <= MAX_WEBP_SIDE && g.width <= MAX_WEBP_SIDE, SHAPE,
            "%s: %d x %d pixels, WebP has at most %d a side; show fewer images", path, g.height,
            g.width, MAX_WEBP_SIDE);
    picture_animation *a = calloc(1, sizeof *a);
    REQUIRE(a, NOMEM, "%s: %zu bytes", path, sizeof *a);
    a->grid = g;
    const size_t area = (size_t)g.height * (size_t)g.width;
    a->path = strdup(path);
    a->pixels = malloc(area * (size_t)c);
    a->rgb = c == 3 ? a->pixels : malloc(area * 3);
    WebPAnimEncoderOptions options;
    if (!WebPAnimEncoderOptionsInit(&options))
        FAIL_GOTO(fail, BUG, "%s: libwebpmux of another version than its header", path);
    options.anim_params.bgcolor = 0xFF000000;
    options.kmax = 0; /* no extra key frames: the animation is looked at from its start */
    a->encoder = WebPAnimEncoderNew(g.width, g.height, &options);
    if (!a->path || !a->pixels || !a->rgb || !a->encoder)
        FAIL_GOTO(fail, NOMEM, "%s: frames of %d x %d", path, g.height, g.width);
    *out = a;
    return DDPM_OK;
fail:
    picture_animation_abandon(a);
    return s;
}

ddpm_status picture_animation_add(picture_animation *a, const uint8_t *images, int milliseconds)
{
    if (!a) return DDPM_OK;
    REQUIRE(milliseconds > 0, ARG, "%s: a frame of %d ms", a->path, milliseconds);
    const grid_shape *g = &a->grid;
    grid_draw(g, images, a->pixels);
    for (size_t i = 0; g->c == 1 && i < (size_t)g->height * (size_t)g->width; i++)
        memset(a->rgb + 3 * i, a->pixels[i], 3);
    WebPConfig config;
    WebPPicture frame;
    REQUIRE(WebPConfigInit(&config) && WebPPictureInit(&frame), BUG,
            "%s: libwebp of another version than its header", a->path);
    config.lossless = 1;
    config.quality = 20; /* effort: higher ones take far longer for a few per cent */
    config.method = 1;
    frame.use_argb = 1;
    frame.width = g->width;
    frame.height = g->height;
    const bool is_added = WebPPictureImportRGB(&frame, a->rgb, g->width * 3) &&
                          WebPAnimEncoderAdd(a->encoder, &frame, a->now, &config);
    WebPPictureFree(&frame);
    REQUIRE(is_added, NOMEM, "%s: a frame of %d x %d: %s", a->path, g->height, g->width,
            WebPAnimEncoderGetError(a->encoder));
    a->now += milliseconds;
    return DDPM_OK;
}

ddpm_status picture_animation_finish(picture_animation *a)
{
    if (!a) return DDPM_OK;
    ddpm_status s = DDPM_OK;
    WebPData data;
    WebPDataInit(&data);
    if (a->now == 0) {
        s = FAIL(ARG, "%s: an animation without frames", a->path);
    } else if (!WebPAnimEncoderAdd(a->encoder, NULL, a->now, NULL) ||
               !WebPAnimEncoderAssemble(a->encoder, &data)) {
        s = FAIL(NOMEM, "%s: %s", a->path, WebPAnimEncoderGetError(a->encoder));
    } else {
        s = commit_bytes(a->path, data.bytes, data.size);
    }
    WebPDataClear(&data);
    picture_animation_abandon(a);
    return s;
}

void picture_animation_abandon(picture_animation *a)
{
    if (!a) return;
    WebPAnimEncoderDelete(a->encoder);
    if (a->rgb != a->pixels) free(a->rgb);
    free(a->pixels);
    free(a->path);
    free(a);
}

#else

ddpm_status picture_animation_create(const char *path, int n, int h, int w, int c, int columns,
                                     picture_animation **out)
{
    (void)path;
    grid_shape g = {0};
    *out = NULL;
    return grid_plan(n, h, w, c, columns, &g);
}

ddpm_status picture_animation_add(picture_animation *a, const uint8_t *images, int milliseconds)
{
    (void)a, (void)images, (void)milliseconds;
    return DDPM_OK;
}

ddpm_status picture_animation_finish(picture_animation *a)
{
    (void)a;
    return DDPM_OK;
}

void picture_animation_abandon(picture_animation *a)
{
    (void)a;
}

#endif
