/* image_stb.c - stb_image, compiled here and nowhere else, PNG and JPEG only.
 *
 * Job        pixels from bytes that image_png.c or image_jpeg.c have proved.
 * Method     stb's memory comes zeroed, so that whatever it might leave unwritten is 0 and the
 *            same in every run, never what an earlier image left behind. Its own limits are set to
 *            ours.
 * Rejected   its other formats, stdio and vertical flip: most of its known holes are there. */
#include "image_checks.h"

#include "fail.h"

#include <stdlib.h>
#include <string.h>

static void *zeroed_alloc(size_t bytes)
{
    return calloc(1, bytes);
}

static void *zeroed_realloc(void *old, size_t old_bytes, size_t bytes)
{
    unsigned char *p = realloc(old, bytes);
    if (p && bytes > old_bytes) memset(p + old_bytes, 0, bytes - old_bytes);
    return p;
}

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_MAX_DIMENSIONS          16384
#define STBI_ASSERT(x)               ((void)(x))
#define STBI_MALLOC(n)               zeroed_alloc(n)
#define STBI_REALLOC_SIZED(p, n, to) zeroed_realloc(p, n, to)
#define STBI_REALLOC(p, n)           realloc(p, n)
#define STBI_FREE(p)                 free(p)
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wshadow"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <stb/stb_image.h>

ddpm_status stb_decode(const uint8_t *file, size_t bytes, const image_info *info, uint8_t **pixels)
{
    int w = 0, h = 0, c = 0;
    REQUIRE(bytes <= INT32_MAX, FORMAT, "%zu bytes are too many for the decoder", bytes);
    stbi_uc *p = stbi_load_from_memory(file, (int)bytes, &w, &h, &c, 0);
    const char *why = p ? "" : stbi_failure_reason();
    REQUIRE(p || !why || strcmp(why, "outofmem") != 0, NOMEM,
            "the decoder, for %d x %d x %d pixels", info->height, info->width, info->channels);
    REQUIRE(p, FORMAT, "the decoder refuses it: %s", why ? why : "no reason given");
    if (w != info->width || h != info->height || c != info->channels) {
        free(p);
        return FAIL(FORMAT, "the decoder made %d x %d x %d of %d x %d x %d pixels", h, w, c,
                    info->height, info->width, info->channels);
    }
    *pixels = p;
    return DDPM_OK;
}
