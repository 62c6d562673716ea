/* The configuration: every key in, every key out, and every slip named with its place. */
#include "support.h"

#include "ddpm/config.h"

#include <locale.h>
#include <math.h>

static ddpm_status parse(const char *text, ddpm_config *out)
{
    return ddpm_config_parse(text, strlen(text), "a.yaml", NULL, 0, out);
}

static ddpm_status parse_set(const char *set, ddpm_config *out)
{
    return ddpm_config_parse("", 0, "a.yaml", &set, 1, out);
}

static void defaults_are_those_of_the_list(void **state)
{
    (void)state;
    ddpm_config c;
    assert_ok(parse("", &c));
    assert_int_equal(c.model.channels, 128);
    assert_int_equal(c.model.channel_mult.n, 4);
    assert_true(c.model.channel_mult.v[3] == 2);
    assert_true(c.train.lr == 2e-4);
    assert_true(c.train.ema.n == 1 && c.train.ema.v[0] == 0.9999);
    assert_true(c.sample.clip && !c.data.flip);
    assert_int_equal(c.sample.variance, DDPM_VARIANCE_LARGE);
    assert_string_equal(c.data.pack, "");
    ddpm_config_free(&c);
    assert_ok(parse("# only a comment\n", &c));
    ddpm_config_free(&c);
    assert_ok(parse("---\nmodel:\ntrain:\n  batch: 7\n...\n", &c)); /* a section without keys */
    assert_int_equal(c.train.batch, 7);
    ddpm_config_free(&c);
}

static void values_are_read(void **state)
{
    (void)state;
    ddpm_config c;
    assert_ok(parse("model:\n"
                    "  image_height: 24   # a comment\n"
                    "  image_width: 40\n"
                    "  channel_mult: [1, 2]\n"
                    "  attention_resolutions:\n"
                    "    - 12\n"
                    "    - 24\n"
                    "  embedding_order: cos-sin\n"
                    "  scale_shift: true\n"
                    "diffusion: {schedule: cosine, objective: v}\n"
                    "data:\n"
                    "  pack: \"a \\\"b\\\" \\u00fc\"\n"
                    "train:\n"
                    "  lr: 1e-3\n"
                    "  ema: 0.99\n"
                    "  seed: 9223372036854775807\n"
                    "sample:\n"
                    "  spacing: 10,15,20\n",
                    &c));
    assert_int_equal(c.model.image_width, 40);
    assert_int_equal(c.model.channel_mult.n, 2);
    assert_int_equal(c.model.attention_resolutions.v[1], 24);
    assert_int_equal(c.model.embedding_order, DDPM_COS_SIN);
    assert_true(c.model.scale_shift);
    assert_int_equal(c.diffusion.objective, DDPM_PREDICT_V);
    assert_string_equal(c.data.pack, "a \"b\" \xC3\xBC");
    assert_true(c.train.lr == 1e-3);
    assert_true(c.train.ema.n == 1 && c.train.ema.v[0] == 0.99); /* a scalar is a list of one */
    assert_true(c.train.seed == INT64_MAX);
    assert_string_equal(c.sample.spacing, "10,15,20");
    ddpm_config_free(&c);
}

static void slips_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } rows[] = {
        {"model:\n  chanels: 64\n",
         "a.yaml:2:3: unknown key 'model.chanels'; the nearest is 'model.channels'"},
        {"train:\n  bacth: 64\n", "the nearest is 'train.batch'"},
        {"sample:\n  lr: 1\n", "the nearest is 'train.lr'"},
        {"modle:\n  channels: 64\n", "a.yaml:1:1: unknown section 'modle'; the nearest is 'model'"},
        {"batch: 64\n", "the nearest key is 'train.batch'"},
        {"train:\n  batch: 1\n  batch: 2\n",
         "a.yaml:3:3: train.batch stands twice; first at line 2"},
        {"train:\n  batch: 1\nmodel:\n  dropout: 0\ntrain:\n  lr: 1\n",
         "a.yaml:5:1: section 'train' stands twice"},
        {"train:\n  batch: many\n",
         "a.yaml:2:10: train.batch: 'many' is not a whole number; allowed: 1 to 65536"},
        {"train:\n  batch: 1.5\n", "not a whole number"},
        {"train:\n  batch: 0x10\n", "not a whole number"},
        {"train:\n  batch: 010\n", "not a whole number"},
        {"train:\n  batch: 1_000\n", "not a whole number"},
        {"train:\n  batch: +5\n", "not a whole number"},
        {"train:\n  batch: 1e3\n", "not a whole number"},
        {"train:\n  batch:\n", "not a whole number"},
        {"train:\n  batch: -1\n", "out of range"},
        {"train:\n  batch: 65537\n", "out of range"},
        {"train:\n  batch: 99999999999999999999\n", "out of range"},
        {"train:\n  seed: -1\n", "out of range"},
        {"train:\n  batch: [1, 2]\n", "a list where one value belongs"},
        {"train:\n  batch: {a: 1}\n", "a mapping where a value belongs"},
        {"train:\n  lr: nan\n", "not a decimal number"},
        {"train:\n  lr: .nan\n", "not a decimal number"},
        {"train:\n  lr: .inf\n", "not a decimal number"},
        {"train:\n  lr: 1e999\n", "too large for a number"},
        {"train:\n  lr: 0x1p-3\n", "not a decimal number"},
        {"train:\n  lr: 0,001\n", "not a decimal number"},
        {"train:\n  lr: -1e-4\n", "out of range; allowed: 0 to 10"},
        {"train:\n  lr: 11\n", "out of range"},
        {"data:\n  flip: yes\n", "neither true nor false"},
        {"data:\n  flip: True\n", "neither true nor false"},
        {"data:\n  flip: 1\n", "neither true nor false"},
        {"diffusion:\n  schedule: linaer\n", "allowed: linear, cosine"},
        {"diffusion:\n  schedule: lin\n", "allowed: linear, cosine"},
        {"diffusion:\n  objective: ''\n", "allowed: eps, x0, v"},
        {"model:\n  channel_mult: []\n", "0 values"},
        {"model:\n  channel_mult: [1,1,1,1,1,1,1,1,1]\n", "9 values"},
        {"model:\n  channel_mult: [1, [2]]\n", "only plain values"},
        {"model:\n  channel_mult: [1, x]\n", "'x' is not a decimal number"},
        {"model:\n  channel_mult: [1, 65]\n", "each 0.125 to 64"},
        {"train:\n  ema: [0.9, 1]\n", "out of range"},
        {"train: 3\n", "must hold keys"},
        {"- train\n", "must hold sections"},
        {"train\n", "must hold sections"},
        {"train:\n  ? [a]\n  : 1\n", "must be a name"},
        {"train: &a\n  batch: 1\n", "anchors, aliases and tags"},
        {"train:\n  batch: *a\n", "anchors, aliases and tags"},
        {"train:\n  batch: !!int 1\n", "anchors, aliases and tags"},
        {"train:\n  <<: 1\n", "unknown key"},
        {"train:\n  batch: 1\n---\ntrain:\n  batch: 2\n", "second document"},
        {"train:\n  batch: 1\n lr: 3\n", "not valid YAML"},
        {"train:\n\tbatch: 1\n", "not valid YAML"},
        {"train: {batch: 1\n", "not valid YAML"},
        {"train:\n  batch: \"1\n", "not valid YAML"},
        {"data:\n  pack: \"\xff\"\n", "not valid YAML"},
        {"data:\n  pack: \"a\\0b\"\n", "a NUL inside"},
        {"\xEF\xBB\xBFtrain:\n  batch: 1\n", "a.yaml:1:1: begins with a byte order mark"},
        {"\xFF\xFEt", "byte order mark"},
        {"train:\r\n  batch: 1\r\n", "a.yaml:1:7: a carriage return"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ddpm_config c;
        const ddpm_status s = parse(rows[i].text, &c);
        if (s != DDPM_CONFIG) fail_msg("row %zu: %s: %s", i, rows[i].text, ddpm_status_name(s));
        assert_message(rows[i].message);
        assert_message("a.yaml");
    }
}

static void size_is_bounded(void **state)
{
    (void)state;
    const size_t million = 1000000;
    char *text = malloc((size_t)2 << 20);
    ddpm_config c;
    memset(text, 'x', (size_t)2 << 20);
    memcpy(text, "#", 1);
    assert_status(ddpm_config_parse(text, million, "a.yaml", NULL, 0, &c), DDPM_CONFIG);
    assert_message("a.yaml:1:65536: the line is longer");
    assert_status(ddpm_config_parse(text, (size_t)2 << 20, "a.yaml", NULL, 0, &c), DDPM_CONFIG);
    assert_message("at most 1048576");
    /* Depth and repetition end early. */
    for (size_t i = 0; i < million; i++)
        text[i] = i % 4000 == 3999 ? '\n' : "[{"[i % 2];
    assert_status(ddpm_config_parse(text, million, "a.yaml", NULL, 0, &c), DDPM_CONFIG);
    free(text);
}

static void keys_can_be_set(void **state)
{
    (void)state;
    ddpm_config c;
    const char *const sets[] = {
        "train.batch=32",  "model.channel_mult=1, 2,3",     "train.ema=[0.99,0.999]",
        "data.pack=a=b c", "model.attention_resolutions=0", "train.batch=16"};
    assert_ok(ddpm_config_parse("train:\n  batch: 8\n", 18, "a.yaml", sets, 6, &c));
    assert_int_equal(c.train.batch, 16);
    assert_true(c.model.channel_mult.v[2] == 3);
    assert_true(c.train.ema.n == 2 && c.train.ema.v[1] == 0.999);
    assert_string_equal(c.data.pack, "a=b c");
    ddpm_config_free(&c);

    static const struct {
        const char *set, *message;
    } rows[] = {
        {"train.batch", "write section.key=value"},
        {"batch=3", "write section.key=value"},
        {"train.bach=3", "--set: unknown key 'train.bach'; the nearest is 'train.batch'"},
        {"train.batch=x", "--set: train.batch: 'x' is not a whole number"},
        {"train.batch=", "not a whole number"},
        {"train.batch= 3", "not a whole number"},
        {"model.channel_mult=", "not a decimal number"},
        {"model.channel_mult=1,,2", "not a decimal number"},
        {"model.channel_mult=1,2,3,4,5,6,7,8,9", "9 values"},
        {"data.pack=\xff", "not valid UTF-8"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_status(parse_set(rows[i].set, &c), DDPM_CONFIG);
        assert_message(rows[i].message);
    }
}

static void keys_must_fit_each_other(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } rows[] = {
        {"model: {image_height: 30}",
         "model.image_height: 30 cannot be halved 3 times by the 4 levels of channel_mult; "
         "24 and 32 can"},
        {"model: {image_width: 36}",
         "model.image_width: 36 cannot be halved 3 times by the 4 levels of channel_mult; "
         "32 and 40 can"},
        {"model: {image_height: 4, attention_resolutions: 0}", "8 can"},
        {"model: {image_height: 28, image_width: 28, channel_mult: [1, 2, 2]}",
         "no level has 16 rows; the levels have 28, 14, 7"},
        {"model: {channels: 48}",
         "norm_groups: 32 does not divide the width 48 (down, level 0, block 0); 24 divides all"},
        /* 32 and 96 suit 32 groups, and so do they together; 64 groups suit neither 32 nor 96. */
        {"model: {channels: 64, channel_mult: [1, 3], norm_groups: 64, image_height: 32}", "none"},
        {"model: {channels: 20, channel_mult: [2, 3], norm_groups: 40}",
         "does not divide the width 60"},
        {"model: {channels: 10, channel_mult: [1, 1.25]}", "1.25 times 10 channels is 12.5, no whole number"},
        {"model: {head_channels: 48}", "head_channels: 48 does not divide the width 256"},
        {"model: {num_heads: 3}", "num_heads: 3 does not divide the width 256"},
        {"model: {channels: 2, norm_groups: 1}", "too few for a time embedding"},
        {"train: {batch: 128, micro_batch: 48}",
         "micro_batch: 48 does not divide train.batch 128; 32 does"},
        {"train: {batch: 8, micro_batch: 16}", "does not divide"},
        {"diffusion: {beta_start: 0.02, beta_end: 0.02}", "beta_start: 0.02 is not below"},
        {"train: {ema: [0.9, 0.99, 0.999, 0.9999, 0.99999]}", "5 rates; at most 4"},
        {"model: {image_height: 8192, image_width: 8192, channels: 4096, channel_mult: [64], "
         "norm_groups: 1, "
         "attention_resolutions: 0}\ntrain: {batch: 65536}",
         "would have 65536 x 8192 x 8192 x 262144"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ddpm_config c;
        if (strcmp(rows[i].message, "none") == 0) {
            assert_ok(parse(rows[i].text, &c));
            ddpm_config_free(&c);
            continue;
        }
        assert_status(parse(rows[i].text, &c), DDPM_CONFIG);
        assert_message(rows[i].message);
    }
}

static void a_struct_filled_by_hand_is_checked(void **state)
{
    (void)state;
    ddpm_config c;
    assert_ok(ddpm_config_defaults(&c));
    assert_ok(ddpm_config_check(&c));
    c.train.lr = NAN;
    assert_status(ddpm_config_check(&c), DDPM_CONFIG);
    c.train.lr = 1e-3;
    c.model.channel_mult.n = 9;
    assert_status(ddpm_config_check(&c), DDPM_CONFIG);
    ddpm_config_free(&c);
    ddpm_config_free(&c); /* zeroed: harmless */
}

/* Every key to another valid value, through --set; then print, parse, compare. */
static void printed_text_reads_back_equal(void **state)
{
    (void)state;
    const char *const sets[] = {
        "model.image_height=48",
        "model.image_width=80",
        "model.channels=96",
        "model.channel_mult=1,2,3",
        "model.attention_resolutions=12,24",
        "model.dropout=0.1",
        "model.norm_eps=1.0000000000000002e-5",
        "model.norm_groups=16",
        "train.lr=3.3333333333333335e-05",
        "train.ema=0.99,0.9999999",
        "train.adam_eps=1e-16",
        "train.seed=9223372036854775807",
        "train.precision=tf32",
        "train.lr_decay=cosine",
        "data.pack= odd: \"path\" # \\ "
        "\xC3\xBC\n\t\x01\x7f\xC2\x85\xE2\x80\xA8\xEF\xBB\xBF\xF0\x9F\x98\x80 ",
        "data.flip=true",
        "sample.clip=false",
        "sample.spacing=~",
        "sample.eta=1"};
    const int n = sizeof sets / sizeof *sets;
    ddpm_config a, b;
    char *text, *again, *diff;
    assert_ok(ddpm_config_parse("", 0, "a.yaml", sets, n, &a));
    assert_ok(ddpm_config_print(&a, &text));
    assert_ok(parse(text, &b));
    assert_ok(ddpm_config_diff(&a, &b, NULL, &diff));
    assert_string_equal(diff, "");
    assert_string_equal(a.data.pack, b.data.pack);
    assert_true(a.train.lr == b.train.lr && a.model.norm_eps == b.model.norm_eps);
    assert_ok(ddpm_config_print(&b, &again));
    assert_string_equal(text, again);
    for (int i = 0; i < ddpm_config_key_count(); i++) {
        char line[64];
        snprintf(line, sizeof line, "\n  %s: ", ddpm_config_key_at(i).key);
        if (!strstr(text, line)) fail_msg("%s is not printed", ddpm_config_key_at(i).key);
    }
    free(text);
    free(again);
    free(diff);
    ddpm_config_free(&a);
    ddpm_config_free(&b);
}

static void differences_are_listed(void **state)
{
    (void)state;
    ddpm_config a, b;
    char *diff;
    assert_ok(ddpm_config_defaults(&a));
    assert_ok(ddpm_config_copy(&a, &b));
    b.model.channels = 64;
    b.train.ema.n = 2;
    b.train.ema.v[1] = 0.99;
    b.diffusion.schedule = DDPM_SCHEDULE_COSINE;
    free(b.data.pack);
    b.data.pack = strdup("x");
    assert_ok(ddpm_config_diff(&a, &b, NULL, &diff));
    assert_string_equal(diff, "model.channels: 128 -> 64\n"
                              "diffusion.schedule: linear -> cosine\n"
                              "data.pack: \"\" -> \"x\"\n"
                              "train.ema: [0.9999] -> [0.9999, 0.99]\n");
    free(diff);
    assert_ok(ddpm_config_diff(&a, &b, "model", &diff));
    assert_string_equal(diff, "model.channels: 128 -> 64\n");
    free(diff);
    assert_string_equal(a.data.pack, ""); /* the copy is its own */
    ddpm_config_free(&a);
    ddpm_config_free(&b);
}

static void the_list_describes_itself(void **state)
{
    (void)state;
    bool has_schedule = false;
    for (int i = 0; i < ddpm_config_key_count(); i++) {
        const ddpm_config_key k = ddpm_config_key_at(i);
        assert_true(*k.section && *k.key && *k.kind && *k.allowed && *k.help);
        if (strcmp(k.key, "schedule") == 0) {
            has_schedule = true;
            assert_string_equal(k.kind, "ENUM");
            assert_string_equal(k.default_text, "linear");
            assert_string_equal(k.allowed, "linear, cosine");
        }
        if (strcmp(k.key, "variance") == 0) assert_string_equal(k.default_text, "large");
        if (strcmp(k.key, "flip") == 0) assert_string_equal(k.default_text, "false");
        if (strcmp(k.key, "beta_start") == 0) assert_string_equal(k.default_text, "1e-4");
        if (strcmp(k.key, "pack") == 0) assert_string_equal(k.default_text, "");
        /* The default, written out, is a value that --set takes. */
        char set[128];
        ddpm_config c;
        snprintf(set, sizeof set, "%s.%s=%s", k.section, k.key, k.default_text);
        assert_ok(parse_set(set, &c));
        ddpm_config_free(&c);
    }
    assert_true(has_schedule);
    assert_string_equal(ddpm_config_key_at(-1).key, "");
}

static void a_comma_locale_changes_nothing(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "nl_NL.UTF-8"};
    bool has_comma = false;
    for (size_t i = 0; i < 4 && !has_comma; i++)
        has_comma = setlocale(LC_ALL, names[i]) && strcmp(localeconv()->decimal_point, ",") == 0;
    if (!has_comma) skip(); /* no such locale on this machine */
    ddpm_config c;
    char *text;
    const ddpm_status s = parse("train:\n  lr: 0.25\n", &c);
    const double lr = c.train.lr;
    const ddpm_status printed = s ? s : ddpm_config_print(&c, &text);
    setlocale(LC_ALL, "C");
    assert_ok(printed);
    assert_true(lr == 0.25);
    assert_non_null(strstr(text, "lr: 0.25\n"));
    free(text);
    ddpm_config_free(&c);
}

static void files_are_loaded(void **state)
{
    char path[SUPPORT_PATH];
    ddpm_config c = {0};
    support_join(path, *state, "run 1.yaml");
    support_write_file(path, "train:\n  batch: 4\n", 18);
    assert_ok(ddpm_config_load(path, NULL, 0, &c));
    assert_int_equal(c.train.batch, 4);
    ddpm_config_free(&c);
    support_write_file(path, "train:\n  batch: y\n", 18);
    assert_status(ddpm_config_load(path, NULL, 0, &c), DDPM_CONFIG);
    assert_message("run 1.yaml:2:10: train.batch");
    assert_null(c.data.pack); /* untouched on failure */
    assert_status(ddpm_config_load(support_join(path, *state, "none.yaml"), NULL, 0, &c),
                  DDPM_NOINPUT);
    assert_status(ddpm_config_load(*state, NULL, 0, &c), DDPM_CONFIG);
    assert_status(ddpm_config_load("/dev/zero", NULL, 0, &c), DDPM_CONFIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_list),
        cmocka_unit_test(values_are_read),
        cmocka_unit_test(slips_are_named),
        cmocka_unit_test(size_is_bounded),
        cmocka_unit_test(keys_can_be_set),
        cmocka_unit_test(keys_must_fit_each_other),
        cmocka_unit_test(a_struct_filled_by_hand_is_checked),
        cmocka_unit_test(printed_text_reads_back_equal),
        cmocka_unit_test(differences_are_listed),
        cmocka_unit_test(the_list_describes_itself),
        cmocka_unit_test(a_comma_locale_changes_nothing),
        cmocka_unit_test(files_are_loaded),
    };
    return cmocka_run_group_tests(tests, support_setup, support_teardown);
}
