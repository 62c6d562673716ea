/* fuzz_config.c - any text as a configuration: refused with its place, or what is printed from it
 * reads back equal.
 *
 * An input that begins with '=' is a --set argument; others are a document. */
#include "fuzz.h"

#include "ddpm/config.h"

#include <string.h>

static void check_round_trip(const ddpm_config *c)
{
    ddpm_config back;
    char *text, *diff;
    FUZZ_CHECK(ddpm_config_print(c, &text) == DDPM_OK);
    FUZZ_CHECK(ddpm_config_parse(text, strlen(text), "printed", NULL, 0, &back) == DDPM_OK);
    FUZZ_CHECK(ddpm_config_diff(c, &back, NULL, &diff) == DDPM_OK);
    FUZZ_CHECK(*diff == '\0');
    free(text);
    free(diff);
    ddpm_config_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    ddpm_config c;
    ddpm_status s;
    if (bytes > 0 && data[0] == '=') {
        char *set = calloc(1, bytes);
        FUZZ_CHECK(set);
        memcpy(set, data + 1, bytes - 1);
        s = ddpm_config_parse("", 0, "fuzz.yaml", (const char *const *)&set, 1, &c);
        free(set);
    } else {
        /* A copy of its own size, so that a read beyond the end is seen. */
        char *text = malloc(bytes ? bytes : 1);
        FUZZ_CHECK(text);
        if (bytes) memcpy(text, data, bytes);
        s = ddpm_config_parse(text, bytes, "fuzz.yaml", NULL, 0, &c);
        free(text);
    }
    FUZZ_CHECK(s == DDPM_OK || (s == DDPM_CONFIG && *ddpm_last_error()));
    if (s) return 0;
    check_round_trip(&c);
    ddpm_config_free(&c);
    return 0;
}
