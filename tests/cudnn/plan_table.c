/* plan_table.c - which engine cuDNN gives the graphs of configurations, on GPUs that are not there, as lines of TSV.
 *
 *     plan_table DEVICES CONFIG... > TABLE            plan_table --version
 *
 * DEVICES is the folder of the GPUs' properties. Each configuration is trained for one step on the planning backend, with its
 * own batch and with a batch of 1, in f32 and bf16; every product among the noted calls is turned into the forms it may take
 * (cudnn_forms.h), and each different graph is planned once for each device. Precompiled engines cost milliseconds and are
 * planned for every graph; to list an engine that is compiled at run time takes a tenth of a second, to compile it one or two,
 * so of each such (op, form, precision) the first graph is planned and compiled for every chip (of attention, the first of
 * each configuration), and the others are left to their plainest form. Lines have one graph and, for each device, a cell:
 *
 *     engine/workspace/flags       flags: d deterministic, r compiled at run time, c copies a whole tensor into its workspace
 *     none                         cuDNN has no engine: own kernels compute the call
 *     failed                       engines were offered and none could be built
 *
 * then the kernel for the last device, for engines compiled at run time. Lines are sorted, so that tables compare by line. */
#include "cudnn_forms.h"

#include "backend_internal.h"
#include "ddpm/train.h"
#include "planning.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const devices[] = {"a100", "b200", "h100", "h200"};
enum { DEVICES = 4, CHIPS = 3, GRAPHS_MAX = 4096, CELL = 64 }; /* H100 and H200 are one chip */

/* One graph; `op` and `form` as in cudnn_forms.h. */
struct entry {
    const char *op, *form;
    ddpm_dtype dtype;
    bool is_compiled;     /* its engines are, at run time */
    unsigned epilogue;     /* what is added: of 1 emb, 2 residual */
    const char *attention; /* the configuration, for attention alone */
    struct cudnn_graph *graph;
    char cell[DEVICES][CELL];
    char kernel[CUDNN_KERNEL_NAME];
};

static struct entry entries[GRAPHS_MAX];
static int n_entries;

static void stop(const char *what)
{
    fprintf(stderr, "plan_table: %s: %s\n", what, ddpm_last_error());
    exit(1);
}

#define CHECK(call)                                                                                                  \
    do {                                                                                                             \
        if (call) stop(#call);                                                                                       \
    } while (0)

/* ---- which graphs ---- */

/* Precompiled engines do plain convolutions, and in f32 those with a bias. */
static bool is_compiled_form(const struct cudnn_form *f, ddpm_dtype dtype)
{
    if (strcmp(f->name, "matmul") == 0) return true;
    return dtype == DDPM_BF16 && (strcmp(f->name, "fused") == 0 || strcmp(f->name, CUDNN_FORM_SUMS) == 0 ||
                                  strcmp(f->name, CUDNN_FORM_GRADIENT) == 0);
}

static const char *configuration; /* that is being added */

static const char *attention_of(const char *op)
{
    return strncmp(op, "attention", strlen("attention")) == 0 ? configuration : NULL;
}

static unsigned epilogue_of(const struct cudnn_graph *g)
{
    return (cudnn_graph_tensor(g, CUDNN_UID_EMB) != NULL) + 2 * (cudnn_graph_tensor(g, CUDNN_UID_RESIDUAL) != NULL);
}

static bool is_wanted(const char *op, const struct cudnn_form *f, ddpm_dtype dtype)
{
    const bool is_compiled = is_compiled_form(f, dtype);
    for (int i = 0; i < n_entries; i++) {
        const struct entry *e = &entries[i];
        if (strcmp(e->graph->name, f->graph->name) == 0) return false;
        if (is_compiled && e->dtype == dtype && strcmp(e->op, op) == 0 && strcmp(e->form, f->name) == 0 &&
            e->epilogue == epilogue_of(f->graph) && e->attention == attention_of(op))
            return false;
    }
    return true;
}

/* Takes over the forms. */
static void add_forms(const char *op, ddpm_dtype dtype, struct cudnn_forms *f)
{
    for (int i = 0; i < f->n; i++) {
        struct cudnn_form *form = &f->form[i];
        if (!is_wanted(op, form, dtype)) continue;
        if (n_entries == GRAPHS_MAX) stop("too many graphs");
        entries[n_entries++] = (struct entry){.op = op,
                                              .form = form->name,
                                              .dtype = dtype,
                                              .is_compiled = is_compiled_form(form, dtype),
                                              .epilogue = epilogue_of(form->graph),
                                              .attention = attention_of(op),
                                              .graph = form->graph};
        form->graph = NULL;
    }
    cudnn_forms_release(f);
}

static void add_call(ddpm_dtype dtype, const struct planning_call *c)
{
    const struct cudnn_plan_rules rules = {0}, in_order = {.is_deterministic = true};
    struct cudnn_forms f = {0};
#define PRODUCT(forms_of, op, rules)                                                                                 \
    CHECK(cudnn_forms_##forms_of(&c->args.op, &rules, &f));                                                          \
    add_forms(#forms_of, dtype, &f)
    switch (c->op) {
    case OP_conv2d:
        PRODUCT(conv2d, conv2d, rules);
        break;
    case OP_conv2d_bwd_data:
        PRODUCT(conv2d_bwd_data, conv2d_bwd_data, rules);
        break;
    case OP_conv2d_bwd_filter:
        PRODUCT(conv2d_bwd_filter, conv2d_bwd_filter, rules);
        break;
    case OP_attention:
        PRODUCT(attention, attention, rules);
        break;
    case OP_attention_bwd:
        PRODUCT(attention_bwd, attention_bwd, rules);
        CHECK(cudnn_forms_attention_bwd(&c->args.attention_bwd, &in_order, &f));
        add_forms("attention_bwd in order", dtype, &f);
        break;
    case OP_linear:
        PRODUCT(linear, linear, rules);
        break;
    case OP_linear_bwd:
        PRODUCT(linear_bwd_data, linear_bwd, rules);
        PRODUCT(linear_bwd_weights, linear_bwd, rules);
        break;
    default:
        break;
    }
}

static void add_configuration(ddpm_dtype dtype, const char *path)
{
    ddpm_config cfg = {0};
    ddpm_backend *be;
    const struct planning_options options = {.name = "any GPU"};
    configuration = path;
    CHECK(ddpm_config_load(path, NULL, 0, &cfg));
    cfg.train.precision = dtype == DDPM_BF16 ? DDPM_PRECISION_BF16 : DDPM_PRECISION_FP32;
    CHECK(planning_create(&options, &be));
    const int64_t batches[] = {cfg.train.micro_batch ? cfg.train.micro_batch : cfg.train.batch, 1};
    for (int i = 0; i < 2; i++) {
        cfg.train.batch = batches[i];
        cfg.train.micro_batch = 0;
        CHECK(ddpm_trainer_plan(be, &cfg));
    }
    for (int i = 0; i < planning_call_count(be); i++)
        add_call(dtype, planning_call_at(be, i));
    ddpm_backend_free(be);
    ddpm_config_free(&cfg);
}

/* ---- their engines ---- */

/* `same`: a plan for another GPU of the same chip, or NULL. Where it is by the engine that this GPU's list begins with, it is read
 * from its text for this one instead of being compiled once more, if cuDNN takes it (9.28 does not in all cases). */
static ddpm_status plan_of(const struct entry *e, const struct cudnn_device *d, const struct cudnn_plan *same, bool *is_offered,
                           struct cudnn_plan **out)
{
    const struct cudnn_plan_rules rules = {.is_deterministic = false};
    struct cudnn_plan_list list;
    struct cudnn_engine_notes first = {.engine = -1};
    char *text = NULL;
    *out = NULL;
    ddpm_status s = cudnn_plan_list_best(e->graph, d, &rules, &list);
    if (s) return s;
    *is_offered = list.n > 0;
    if (list.n) s = cudnn_plan_list_notes(&list, 0, &first);
    if (!s && same && same->is_compiled && same->engine == first.engine) {
        s = cudnn_plan_to_json(same, &text);
        if (!s) s = cudnn_plan_from_json(e->graph, d, text, out);
        if (s == DDPM_FORMAT) s = DDPM_OK;
        free(text);
    }
    if (!s && !*out) s = cudnn_plan_first(e->graph, &list, out);
    cudnn_plan_list_release(&list);
    return s;
}

static ddpm_status plan_entry(struct entry *e, int device, const struct cudnn_device *d, const struct cudnn_plan *same,
                              struct cudnn_plan **out)
{
    char *cell = e->cell[device];
    bool is_offered = false;
    const ddpm_status s = plan_of(e, d, same, &is_offered, out);
    if (s) return s;
    const struct cudnn_plan *plan = *out;
    if (plan)
        snprintf(cell, CELL, "%lld/%zu/%s%s%s", (long long)plan->engine, plan->workspace_bytes, plan->is_deterministic ? "d" : "",
                 plan->is_compiled ? "r" : "", plan->copies_tensor ? "c" : "");
    else
        snprintf(cell, CELL, "%s", is_offered ? "failed" : "none");
    if (plan && plan->is_compiled && device == DEVICES - 1) memcpy(e->kernel, plan->kernel, sizeof e->kernel);
    return DDPM_OK;
}

/* The devices that share a chip with the last one come after it. */
static void plan_chip(struct entry *e, int chip, struct cudnn_device *const d[DEVICES])
{
    static const int of_chip[CHIPS][2] = {{0, -1}, {1, -1}, {3, 2}};
    struct cudnn_plan *plan[2] = {NULL, NULL};
    for (int i = 0; i < 2 && of_chip[chip][i] >= 0; i++)
        if (plan_entry(e, of_chip[chip][i], d[of_chip[chip][i]], plan[0], &plan[i])) stop(e->graph->name);
    for (int i = 0; i < 2; i++)
        cudnn_plan_free(plan[i]);
}

static struct cudnn_device *read_device(const char *folder, const char *name)
{
    char path[1024], json[8192];
    struct cudnn_device *d = NULL;
    snprintf(path, sizeof path, "%s/%s.json", folder, name);
    FILE *f = fopen(path, "r");
    if (!f) {
        perror(path);
        exit(1);
    }
    json[fread(json, 1, sizeof json - 1, f)] = '\0';
    fclose(f);
    CHECK(cudnn_device_from_json(json, &d));
    return d;
}

static void plan_all(const char *folder)
{
    struct cudnn_device *d[DEVICES];
    for (int i = 0; i < DEVICES; i++)
        d[i] = read_device(folder, devices[i]);
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < n_entries * CHIPS; i++)
        plan_chip(&entries[i / CHIPS], i % CHIPS, d);
    for (int i = 0; i < DEVICES; i++)
        cudnn_device_free(d[i]);
}

static int by_op_and_name(const void *a, const void *b)
{
    const struct entry *l = a, *r = b;
    const int order = strcmp(l->op, r->op);
    return order ? order : strcmp(l->graph->name, r->graph->name);
}

static void print_table(void)
{
    qsort(entries, (size_t)n_entries, sizeof *entries, by_op_and_name);
    printf("op\tform\tgraph");
    for (int k = 0; k < DEVICES; k++)
        printf("\t%s", devices[k]);
    puts("\tkernel");
    for (int i = 0; i < n_entries; i++) {
        const struct entry *e = &entries[i];
        printf("%s\t%s\t%s", e->op, e->form, e->graph->name);
        for (int k = 0; k < DEVICES; k++)
            printf("\t%s", e->cell[k]);
        printf("\t%s\n", e->kernel[0] ? e->kernel : "-");
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        const size_t v = cudnnGetVersion();
        printf("%zu.%zu.%zu\n", v / 10000, v / 100 % 100, v % 100);
        return 0;
    }
    if (argc < 3) {
        fputs("usage: plan_table DEVICES CONFIG... | --version\n", stderr);
        return 64;
    }
    for (int i = 2; i < argc; i++) {
        add_configuration(DDPM_F32, argv[i]);
        add_configuration(DDPM_BF16, argv[i]);
    }
    fprintf(stderr, "plan_table: %d graphs for %d devices\n", n_entries, DEVICES);
    plan_all(argv[1]);
    print_table();
    for (int i = 0; i < n_entries; i++)
        cudnn_graph_free(entries[i].graph);
    return 0;
}
