/* usage.c - command lines: what argp does, with faults in one line of our own.
 *
 * argp and getopt print a wrong option in two lines of their own wording and cannot say which
 * option was meant. So the line is looked through first, by the same rules (exact name, else unique
 * prefix; -abc;
 * --name=value; "--" ends the options), and argp then meets only options that exist. A surplus
 * argument is caught by a second child parser behind the command's. */
#include "cli.h"

#include "fail.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES_MAX = 96, NAME_MAX_BYTES = 64 };

/* Levenshtein distance, both words at most NAME_MAX_BYTES - 1 bytes; longer ones are far from all.
 */
static int edit_distance(const char *a, const char *b)
{
    const size_t na = strlen(a), nb = strlen(b);
    int row[NAME_MAX_BYTES];
    if (na >= NAME_MAX_BYTES || nb >= NAME_MAX_BYTES) return NAME_MAX_BYTES;
    for (size_t j = 0; j <= nb; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            const int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = change;
            if (diagonal + 1 < row[j]) row[j] = diagonal + 1;
            if (row[j - 1] + 1 < row[j]) row[j] = row[j - 1] + 1;
        }
    }
    return row[nb];
}

const char *cli_nearest(const char *word, const char *const *names, int n)
{
    const char *best = NULL;
    int best_distance = (int)strlen(word) / 2 + 1;
    for (int i = 0; i < n; i++) {
        const int d = edit_distance(word, names[i]);
        if (d < best_distance) {
            best_distance = d;
            best = names[i];
        }
    }
    return best;
}

static void __attribute__((noreturn)) usage_exit(const char *command, const char *message)
{
    status_set_message(message);
    exit(cli_fail(command, DDPM_ARG, NULL, NULL));
}

void cli_usage_error(struct argp_state *state, const char *fmt, ...)
{
    char message[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    usage_exit(state->name, message);
}

int64_t cli_integer(struct argp_state *state, const char *option, const char *text, int64_t lo,
                    int64_t hi)
{
    char *end;
    errno = 0;
    const long long v = strtoll(text, &end, 10);
    const bool is_number =
        end != text && *end == '\0' && (*text == '-' || (*text >= '0' && *text <= '9'));
    if (!is_number || errno || v < lo || v > hi)
        cli_usage_error(state, "%s is \"%.80s\"; it takes a whole number from %lld to %lld", option,
                        text, (long long)lo, (long long)hi);
    return v;
}

void cli_sets_add(struct argp_state *state, cli_sets *sets, const char *text)
{
    if (!strchr(text, '='))
        cli_usage_error(state, "--set is \"%.80s\"; it takes section.key=value, as train.lr=1e-4",
                        text);
    if (sets->n == CLI_SET_MAX) cli_usage_error(state, "more than %d times --set", CLI_SET_MAX);
    sets->v[sets->n++] = text;
}

/* ---- looking through the line ---- */

struct option_table {
    int n;
    const char *names[NAMES_MAX]; /* long names; "" where there is none; borrowed */
    int keys[NAMES_MAX];
    bool takes_value[NAMES_MAX], must_have_value[NAMES_MAX];
};

static void table_add(struct option_table *t, const char *name, int key, const char *arg, int flags)
{
    if (t->n == NAMES_MAX) return;
    t->names[t->n] = name ? name : "";
    t->keys[t->n] = key;
    t->takes_value[t->n] = arg != NULL;
    t->must_have_value[t->n] = arg && !(flags & OPTION_ARG_OPTIONAL);
    t->n++;
}

static void table_fill(struct option_table *t, const struct argp *parser)
{
    const struct argp_option *main_option = NULL;
    for (const struct argp_option *o = parser->options;
         o && (o->name || o->key || o->doc || o->group); o++) {
        if (o->flags & OPTION_DOC || (!o->name && !o->key)) continue;
        if (!(o->flags & OPTION_ALIAS)) main_option = o;
        if (main_option) table_add(t, o->name, o->key, main_option->arg, main_option->flags);
    }
    for (const struct argp_child *c = parser->children; c && c->argp; c++)
        table_fill(t, c->argp);
}

/* The row of a long name or unique prefix; -1 unknown, -2 ambiguous. */
static int table_find(const struct option_table *t, const char *name, size_t bytes)
{
    int found = -1;
    for (int i = 0; i < t->n; i++) {
        if (strncmp(t->names[i], name, bytes) != 0 || !*t->names[i]) continue;
        if (t->names[i][bytes] == '\0') return i;
        found = found == -1 ? i : -2;
    }
    return found;
}

static void check_long(const struct option_table *t, const char *command, char **argv, int argc,
                       int *i)
{
    const char *name = argv[*i] + 2, *equals = strchr(name, '=');
    const size_t bytes = equals ? (size_t)(equals - name) : strlen(name);
    const int row = table_find(t, name, bytes);
    char message[512], word[NAME_MAX_BYTES];
    if (row >= 0) {
        if (equals && !t->takes_value[row])
            snprintf(message, sizeof message, "--%s takes no value", t->names[row]);
        else if (!equals && t->must_have_value[row] && ++*i >= argc)
            snprintf(message, sizeof message, "--%s needs a value", t->names[row]);
        else
            return;
        usage_exit(command, message);
    }
    snprintf(word, sizeof word, "%.*s", (int)(bytes < 60 ? bytes : 60), name);
    const char *near = cli_nearest(word, t->names, t->n);
    if (row == -2)
        snprintf(message, sizeof message, "option --%s fits several options", word);
    else if (near && *near)
        snprintf(message, sizeof message, "unknown option --%s; the nearest is --%s", word, near);
    else
        snprintf(message, sizeof message, "unknown option --%s", word);
    usage_exit(command, message);
}

static void check_short(const struct option_table *t, const char *command, char **argv, int argc,
                        int *i)
{
    char message[64];
    for (const char *p = argv[*i] + 1; *p; p++) {
        int row = 0;
        while (row < t->n && t->keys[row] != *p)
            row++;
        if (row == t->n)
            snprintf(message, sizeof message, "unknown option -%c", *p);
        else if (!t->takes_value[row])
            continue;
        else if (p[1] || !t->must_have_value[row] || ++*i < argc)
            return;
        else
            snprintf(message, sizeof message, "option -%c needs a value", *p);
        usage_exit(command, message);
    }
}

/* Wrong options end the program; true when help is asked for. */
static bool check_line(const struct argp *parser, int argc, char **argv)
{
    struct option_table t = {0};
    table_fill(&t, parser);
    table_add(&t, "help", '?', NULL, 0);
    table_add(&t, "usage", 0, NULL, 0);
    bool wants_help = false;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--") == 0) break;
        if (strcmp(a, "--help") == 0 || strcmp(a, "--usage") == 0 || strcmp(a, "-?") == 0)
            wants_help = true;
        if (strncmp(a, "--", 2) == 0)
            check_long(&t, argv[0], argv, argc, &i);
        else if (a[0] == '-' && a[1])
            check_short(&t, argv[0], argv, argc, &i);
    }
    return wants_help;
}

static error_t parse_surplus(int key, char *arg, struct argp_state *state)
{
    if (key != ARGP_KEY_ARG) return ARGP_ERR_UNKNOWN;
    cli_usage_error(state, "one argument too many: \"%.80s\"", arg);
}

static error_t parse_root(int key, char *arg, struct argp_state *state)
{
    (void)arg;
    if (key == ARGP_KEY_INIT) state->child_inputs[0] = state->input;
    return key == ARGP_KEY_INIT ? 0 : ARGP_ERR_UNKNOWN;
}

void cli_parse(const struct argp *parser, int argc, char **argv, void *input)
{
    if (check_line(parser, argc, argv)) {
        char help[] = "--help", *line[] = {argv[0], help, NULL};
        argp_parse(parser, 2, line, 0, NULL, input); /* prints and exits */
    }
    static const struct argp surplus = {.parser = parse_surplus};
    const struct argp_child children[] = {{.argp = parser}, {.argp = &surplus}, {0}};
    const struct argp root = {.parser = parse_root, .children = children};
    const error_t e = argp_parse(&root, argc, argv, 0, NULL, input);
    if (e) usage_exit(argv[0], strerror(e));
}
