/* test_checkpoint.c - what is written comes back to the bit; a foreign or unfitting file is named; the newest whole one is
 * found; pruning keeps what it promises. */
#include "tiny_run.h"

#include "progress.h"

static ddpm_backend *be;
static char dir[SUPPORT_PATH];

static int setup(void **state)
{
    (void)state;
    support_make_folder(dir);
    return ddpm_backend_create("cpu", 1, &be) ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    ddpm_backend_free(be);
    support_remove_tree(dir);
    return 0;
}

/* The weights of all parameters are the same bits (the gaps between them are not kept). */
static void assert_same_weights(const ddpm_model *m, const float *a, const float *b)
{
    for (int i = 0; i < ddpm_model_parameter_count(m); i++) {
        const ddpm_parameter *p = ddpm_model_parameter(m, i);
        assert_memory_equal(a + p->offset, b + p->offset, (size_t)p->count * sizeof *a);
    }
}

static void comes_back_to_the_bit(void **state)
{
    (void)state;
    static const char *const prefix[] = {"weights", "adam_m", "adam_v", "ema.0", "ema.1"};
    char path[SUPPORT_PATH];
    support_join(path, dir, "one.safetensors");
    ddpm_config cfg = tiny_config(0, NULL), back = {0};
    tiny_checkpoint(be, path, &cfg, 42, 5);

    st_file *f;
    checkpoint_counters c;
    assert_ok(checkpoint_open(path, &f, &back, &c));
    assert_int_equal(c.step, 42);
    assert_int_equal(c.updates, 42);
    assert_int_equal(c.seed, 3);
    assert_int_equal(c.n_ema, 2);
    assert_true(c.ema[0] == 0.9 && c.ema[1] == 0.99);
    assert_string_equal(c.dataset, "00112233445566778899aabbccddeeff");
    char *difference;
    assert_ok(ddpm_config_diff(&cfg, &back, NULL, &difference));
    assert_string_equal(difference, "");
    free(difference);

    ddpm_model *m;
    float *arrays[TINY_ARRAYS];
    assert_ok(ddpm_model_create(be, &back.model, &m));
    tiny_arrays(m, 5, arrays);
    float *arena = calloc((size_t)ddpm_model_arena_count(m), sizeof *arena);
    for (int k = 0; k < TINY_ARRAYS; k++) {
        assert_ok(checkpoint_read(f, prefix[k], m, arena));
        assert_same_weights(m, arena, arrays[k]);
        free(arrays[k]);
    }
    /* A convolution's weight lies in the file as [out,in,kh,kw]. */
    const st_tensor *t = st_find(f, "weights.conv_in.weight");
    assert_non_null(t);
    assert_int_equal(t->shape[0], 4);
    assert_int_equal(t->shape[1], 1);
    assert_int_equal(t->shape[2], 3);
    free(arena);
    ddpm_model_free(m);
    st_close(f);
    ddpm_config_free(&cfg);
    ddpm_config_free(&back);
}

static void equal_state_gives_equal_bytes(void **state)
{
    (void)state;
    char a[SUPPORT_PATH], b[SUPPORT_PATH];
    ddpm_config cfg = tiny_config(0, NULL);
    tiny_checkpoint(be, support_join(a, dir, "a.safetensors"), &cfg, 1, 5);
    tiny_checkpoint(be, support_join(b, dir, "b.safetensors"), &cfg, 1, 5);
    size_t na, nb;
    char *da = support_read_file(a, &na), *db = support_read_file(b, &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(da, db, na);
    free(da);
    free(db);
    ddpm_config_free(&cfg);
}

static void another_model_is_listed(void **state)
{
    (void)state;
    static const char *const set[] = {"model.channels=8"}, *const deeper[] = {"model.num_res_blocks=2"};
    char path[SUPPORT_PATH];
    ddpm_config cfg = tiny_config(0, NULL), wide = tiny_config(1, set), deep = tiny_config(1, deeper), got = {0};
    tiny_checkpoint(be, support_join(path, dir, "fit.safetensors"), &cfg, 1, 5);
    st_file *f;
    checkpoint_counters c;
    assert_ok(checkpoint_open(path, &f, &got, &c));
    ddpm_model *m;
    assert_ok(ddpm_model_create(be, &wide.model, &m));
    float *arena = calloc((size_t)ddpm_model_arena_count(m), sizeof *arena);
    assert_status(checkpoint_read(f, "weights", m, arena), DDPM_FORMAT);
    assert_message("weights.conv_in.weight is F32 4x1x3x3 not F32 8x1x3x3");
    assert_status(checkpoint_read(f, "ema.7", m, arena), DDPM_FORMAT);
    assert_message("missing");
    ddpm_model_free(m);
    free(arena);

    assert_ok(ddpm_model_create(be, &deep.model, &m));
    arena = calloc((size_t)ddpm_model_arena_count(m), sizeof *arena);
    assert_status(checkpoint_read(f, "weights", m, arena), DDPM_FORMAT);
    assert_message("weights.down_blocks.0.resnets.1.norm1.weight missing");
    ddpm_model_free(m);
    free(arena);
    st_close(f);
    ddpm_config_free(&cfg);
    ddpm_config_free(&wide);
    ddpm_config_free(&deep);
    ddpm_config_free(&got);
}

static void weights_that_are_not_finite_are_refused(void **state)
{
    (void)state;
    char path[SUPPORT_PATH];
    support_join(path, dir, "nan.safetensors");
    ddpm_config cfg = tiny_config(0, NULL), got = {0};
    ddpm_model *m;
    float *arrays[TINY_ARRAYS];
    checkpoint_counters counters = tiny_counters(1);
    assert_ok(ddpm_model_create(be, &cfg.model, &m));
    tiny_arrays(m, 1, arrays);
    arrays[3][ddpm_model_parameter(m, 2)->offset] = 0.0f / 0.0f;
    assert_ok(checkpoint_write(path, &cfg, &counters, m, (const float *const *)arrays));
    st_file *f;
    assert_ok(checkpoint_open(path, &f, &got, &counters));
    assert_ok(checkpoint_read(f, "weights", m, arrays[0]));
    assert_status(checkpoint_read(f, "ema.0", m, arrays[0]), DDPM_FORMAT);
    assert_message("not finite");
    for (int k = 0; k < TINY_ARRAYS; k++)
        free(arrays[k]);
    st_close(f);
    ddpm_model_free(m);
    ddpm_config_free(&cfg);
    ddpm_config_free(&got);
}

/* A safetensors file with the metadata given, and one tensor. */
static void write_foreign(const char *path, int n, const char *const (*pairs)[2])
{
    st_writer *w;
    const int64_t one = 1;
    const float x = 1;
    assert_ok(st_writer_create(&w));
    for (int i = 0; i < n; i++)
        assert_ok(st_add_metadata(w, pairs[i][0], pairs[i][1]));
    assert_ok(st_add(w, "x", ST_F32, 1, &one));
    assert_ok(st_begin(w, path));
    assert_ok(st_put(w, &x, sizeof x));
    assert_ok(st_finish(w));
}

static void other_files_are_named(void **state)
{
    (void)state;
    static const char *const pack[][2] = {{"ddpm.kind", "pack"}};
    static const char *const later[][2] = {{"ddpm.kind", "checkpoint"}, {"ddpm.version", "2"}};
    static const char *const bare[][2] = {{"ddpm.kind", "checkpoint"}, {"ddpm.version", "1"}};
    static const char *const typo[][2] = {
        {"ddpm.kind", "checkpoint"},  {"ddpm.version", "1"}, {"ddpm.step", "1"},      {"ddpm.updates", "1"},
        {"ddpm.skipped_in_row", "0"}, {"ddpm.seed", "1"},    {"ddpm.dataset", "aa"},  {"ddpm.ema", "0.9"},
        {"ddpm.config", "model:\n  chanels: 3\n"}};
    static const char *const minus[][2] = {{"ddpm.kind", "checkpoint"}, {"ddpm.version", "1"}, {"ddpm.step", "-1"}};
    const struct {
        int n;
        const char *const (*pairs)[2];
        const char *message;
    } cases[] = {{0, NULL, "no checkpoint of ddpm"},    {1, pack, "a pack, not a checkpoint"},
                 {2, later, "reads version 1"},         {2, bare, "ddpm.step"},
                 {9, typo, "chanels"},                  {3, minus, "whole number"}};
    char path[SUPPORT_PATH];
    support_join(path, dir, "foreign.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        st_file *f = NULL;
        ddpm_config cfg = {0};
        checkpoint_counters c;
        write_foreign(path, cases[i].n, cases[i].pairs);
        assert_status(checkpoint_open(path, &f, &cfg, &c), DDPM_FORMAT);
        assert_message(cases[i].message);
        assert_message("foreign.safetensors");
    }
}

/* ---- a run folder ---- */

static char told[2048];

static void keep_line(void *user, const char *text, bool transient)
{
    (void)user;
    (void)transient;
    strncat(told, text, sizeof told - strlen(told) - 2);
    strcat(told, "\n");
}

static const log_sink sink = {.line = keep_line};

/* RUN/checkpoints with a whole checkpoint for each step. */
static void make_run(char run[SUPPORT_PATH], const char *name, int n, const int64_t *steps)
{
    char folder[SUPPORT_PATH], path[SUPPORT_PATH], file[CHECKPOINT_NAME_BYTES];
    support_join(run, dir, name);
    support_join(folder, run, "checkpoints");
    assert_int_equal(mkdir(run, 0755), 0);
    assert_int_equal(mkdir(folder, 0755), 0);
    ddpm_config cfg = tiny_config(0, NULL);
    for (int i = 0; i < n; i++) {
        checkpoint_name(steps[i], file);
        tiny_checkpoint(be, support_join(path, folder, file), &cfg, steps[i], 1);
    }
    ddpm_config_free(&cfg);
}

static void flip_byte(const char *run, const char *name, long from_end)
{
    char path[SUPPORT_PATH];
    snprintf(path, sizeof path, "%s/checkpoints/%s", run, name);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, -from_end, SEEK_END);
    const int c = fgetc(f);
    fseek(f, -from_end, SEEK_END);
    fputc(c ^ 1, f);
    fclose(f);
}

static void newest_that_verifies(void **state)
{
    (void)state;
    static const int64_t steps[] = {9, 100, 20, 123456789};
    char run[SUPPORT_PATH], path[SUPPORT_PATH], copy[SUPPORT_PATH], *found;
    make_run(run, "newest", 4, steps);
    support_write_file(support_join(path, run, "checkpoints/step-99999999.safetensors.tmp"), "x", 1);
    support_write_file(support_join(path, run, "checkpoints/step-1000000000000.txt"), "x", 1);

    assert_ok(checkpoint_newest(run, &sink, &found));
    assert_non_null(strstr(found, "/checkpoints/step-123456789.safetensors"));
    free(found);
    assert_string_equal(told, "");

    flip_byte(run, "step-123456789.safetensors", 3);
    /* A file under another step's name is not that step. */
    support_join(path, run, "checkpoints/step-00000009.safetensors");
    support_join(copy, run, "checkpoints/step-00000500.safetensors");
    assert_int_equal(rename(path, copy), 0);
    assert_ok(checkpoint_newest(run, &sink, &found));
    assert_non_null(strstr(found, "/checkpoints/step-00000100.safetensors"));
    free(found);
    assert_non_null(strstr(told, "step-123456789.safetensors"));
    assert_non_null(strstr(told, "step-00000500.safetensors: its name says step 500, its metadata step 9"));

    flip_byte(run, "step-00000100.safetensors", 1);
    flip_byte(run, "step-00000020.safetensors", 1);
    assert_status(checkpoint_newest(run, NULL, &found), DDPM_FORMAT);
    assert_message("none of its 4 checkpoints");
    assert_null(found);
}

static void no_checkpoint_is_no_fault(void **state)
{
    (void)state;
    char run[SUPPORT_PATH], *found = run;
    make_run(run, "empty", 0, NULL);
    assert_ok(checkpoint_newest(run, NULL, &found));
    assert_null(found);
    assert_ok(checkpoint_newest(support_join(run, dir, "not there"), NULL, &found));
    assert_null(found);
}

static bool has_step(const char *run, int64_t step)
{
    char path[SUPPORT_PATH], name[CHECKPOINT_NAME_BYTES];
    checkpoint_name(step, name);
    snprintf(path, sizeof path, "%s/checkpoints/%s", run, name);
    return access(path, F_OK) == 0;
}

static void pruning_keeps_what_it_promises(void **state)
{
    (void)state;
    static const int64_t steps[] = {10, 20, 30, 40, 50, 60};
    char run[SUPPORT_PATH], note[SUPPORT_PATH], protect[SUPPORT_PATH];
    make_run(run, "prune", 6, steps);
    support_write_file(support_join(note, run, "checkpoints/step-5.safetensors"), "mine", 4);
    support_join(protect, run, "checkpoints/step-00000010.safetensors");
    assert_ok(checkpoint_prune(run, 2, 20, protect));
    assert_true(has_step(run, 10)); /* protected */
    assert_true(has_step(run, 20)); /* a multiple */
    assert_false(has_step(run, 30));
    assert_true(has_step(run, 40)); /* a multiple */
    assert_true(has_step(run, 50)); /* the newest two */
    assert_true(has_step(run, 60));
    assert_int_equal(access(note, F_OK), 0); /* not a name of ours */
    assert_ok(checkpoint_prune(run, 0, 0, NULL));
    assert_true(has_step(run, 60)); /* one always stays */
    assert_false(has_step(run, 50));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_back_to_the_bit),
        cmocka_unit_test(equal_state_gives_equal_bytes),
        cmocka_unit_test(another_model_is_listed),
        cmocka_unit_test(weights_that_are_not_finite_are_refused),
        cmocka_unit_test(other_files_are_named),
        cmocka_unit_test(newest_that_verifies),
        cmocka_unit_test(no_checkpoint_is_no_fault),
        cmocka_unit_test(pruning_keeps_what_it_promises),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, setup, teardown);
}
