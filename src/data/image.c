/* image.c - a file's bytes to checked pixels of the wanted size.
 *
 * Job        the one way from a PNG or JPEG to pixels: look at the contents (never at the name),
 *            check, decode, convert, fit.
 * Cost       the checks cost about as much as they save: the decoder gets PNG data already
 *            inflated.
 * Rejected   any other format: each parser is one more way in. */
#include "image.h"

#include "fail.h"
#include "fit.h"
#include "image_checks.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static ddpm_status kind_of(const uint8_t *p, size_t bytes, bool *is_png)
{
    REQUIRE(bytes > 0, FORMAT, "is empty");
    REQUIRE(bytes <= IMAGE_MAX_FILE, FORMAT, "has %zu bytes, at most %d are read", bytes,
            IMAGE_MAX_FILE);
    *is_png = bytes >= 8 && !memcmp(p, "\x89PNG\r\n\x1a\n", 8);
    REQUIRE(*is_png || (bytes >= 4 && p[0] == 0xFF && p[1] == 0xD8 && p[2] == 0xFF), FORMAT,
            "is neither PNG nor JPEG");
    return DDPM_OK;
}

ddpm_status image_check(const void *file, size_t bytes, image_info *info)
{
    bool is_png = false;
    image_info found = {0};
    TRY(kind_of(file, bytes, &is_png));
    TRY(is_png ? png_check(file, bytes, &found, NULL, NULL) : jpeg_check(file, bytes, &found));
    *info = found;
    return DDPM_OK;
}

ddpm_status image_decode(const void *file, size_t bytes, int channels, image_info *info,
                         uint8_t **pixels)
{
    bool is_png = false;
    image_info found = {0};
    uint8_t *decoded = NULL;
    TRY(kind_of(file, bytes, &is_png));
    if (is_png) {
        uint8_t *plain = NULL;
        size_t plain_bytes = 0;
        TRY(png_check(file, bytes, &found, &plain, &plain_bytes));
        const ddpm_status s = stb_decode(plain, plain_bytes, &found, &decoded);
        free(plain);
        TRY(s);
    } else {
        TRY(jpeg_check(file, bytes, &found));
        TRY(stb_decode(file, bytes, &found, &decoded));
    }
    const int64_t area = (int64_t)found.height * found.width;
    if (channels > found.channels) {
        uint8_t *wide = malloc((size_t)area * (size_t)channels);
        if (!wide) {
            free(decoded);
            return FAIL(NOMEM, "%d x %d x %d pixels", found.height, found.width, channels);
        }
        fit_channels(decoded, found.channels, wide, channels, area);
        free(decoded);
        decoded = wide;
    } else if (channels < found.channels) {
        fit_channels(decoded, found.channels, decoded, channels, area);
    }
    *info = found;
    *pixels = decoded;
    return DDPM_OK;
}

ddpm_status image_decode_fit(const void *file, size_t bytes, int height, int width, int channels,
                             int fit, uint8_t *dst)
{
    image_info info = {0};
    uint8_t *pixels = NULL;
    TRY(image_decode(file, bytes, channels, &info, &pixels));
    const ddpm_status s =
        fit_image(pixels, info.height, info.width, channels, dst, height, width, fit);
    free(pixels);
    return s;
}
