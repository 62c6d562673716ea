/* folder.c - a folder of image files as a source.
 *
 * Job        which files there are, in an order that depends on their names alone, and the class
 *            of each.
 * Method     every file below the folder is taken, whatever its name ends with: what is no image
 *            is rejected when it is looked at, and listed. Names that begin with a dot are left
 *            out. Links to files are followed, links to folders are not (they may go round in
 *            circles) and come out as rejected.
 * Cost       the names in memory. */
#include "pack.h"

#include "fail.h"
#include "source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_DEPTH = 64, MAX_CSV = 1 << 30 };

typedef struct {
    name_list paths, classes;
} folder_state;

/* ---- the files ---- */

static ddpm_status walk(name_list *paths, const char *path, int depth)
{
    REQUIRE(depth < MAX_DEPTH, FORMAT, "%s: folders are more than %d deep", path, MAX_DEPTH);
    DIR *dir = opendir(path);
    if (!dir) return FAIL_ERRNO("%s: %s", path, strerror(errno));
    ddpm_status s = DDPM_OK;
    for (struct dirent *e; !s && (errno = 0, e = readdir(dir));) {
        if (e->d_name[0] == '.') continue;
        char child[PATH_MAX];
        const char *slash = path[strlen(path) - 1] == '/' ? "" : "/";
        const int n = snprintf(child, sizeof child, "%s%s%s", path, slash, e->d_name);
        if (n >= (int)sizeof child) {
            s = FAIL(FORMAT, "%s: a path of %d bytes below it", path, n);
            break;
        }
        struct stat st;
        if (lstat(child, &st) == 0 && S_ISDIR(st.st_mode))
            s = walk(paths, child, depth + 1);
        else
            s = name_list_add(paths, child, (size_t)n);
    }
    if (!s && errno) s = FAIL_ERRNO("%s: %s", path, strerror(errno));
    closedir(dir);
    return s;
}

/* ---- the classes ---- */

/* The class that a name tells; *bytes 0: none. `root` is the length of the source's own path. */
static const char *class_of(const char *path, size_t root, enum pack_labels labels, size_t *bytes)
{
    const char *name = path + root;
    name += strspn(name, "/");
    const char *base = strrchr(name, '/');
    const char *mark =
        labels == PACK_LABELS_FOLDER ? strchr(name, '/') : strchr(base ? base + 1 : name, '_');
    if (labels == PACK_LABELS_PREFIX && base) name = base + 1;
    *bytes = mark ? (size_t)(mark - name) : 0;
    return name;
}

typedef struct {
    const char *file, *label;
    int line;
} csv_row;

static int by_file(const void *a, const void *b)
{
    return strcmp(((const csv_row *)a)->file, ((const csv_row *)b)->file);
}

static char *unquoted(char *text)
{
    const size_t n = strlen(text);
    if (n < 2 || text[0] != '"' || text[n - 1] != '"') return text;
    text[n - 1] = 0;
    return text + 1;
}

/* Cuts the text into rows: "file,label"; the label is what follows the last comma. A first line
 * that says "file,label" or "filename,label" is a heading. */
static ddpm_status csv_rows(const char *path, char *text, csv_row *rows, size_t *count)
{
    size_t n = 0;
    int number = 0;
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        line[strcspn(line, "\r")] = 0;
        number++;
        if (!*line) continue;
        if (number == 1 && (!strcasecmp(line, "file,label") || !strcasecmp(line, "filename,label")))
            continue;
        char *comma = strrchr(line, ',');
        REQUIRE(comma && comma > line && comma[1], FORMAT, "%s:%d: not \"file,label\"", path,
                number);
        *comma = 0;
        rows[n++] = (csv_row){.file = unquoted(line), .label = unquoted(comma + 1), .line = number};
    }
    qsort(rows, n, sizeof *rows, by_file);
    for (size_t i = 1; i < n; i++)
        REQUIRE(strcmp(rows[i - 1].file, rows[i].file), FORMAT, "%s:%d: %s stands in line %d too",
                path, rows[i].line, rows[i].file, rows[i - 1].line);
    *count = n;
    return DDPM_OK;
}

static ddpm_status csv_read(const char *path, char **text, csv_row **rows, size_t *n)
{
    int fd = -1;
    int64_t bytes = 0;
    REQUIRE(path, ARG, "labels from a CSV file: which? (--csv FILE)");
    TRY(source_open_file(path, &fd, &bytes));
    ddpm_status s = DDPM_OK;
    if (bytes > MAX_CSV) FAIL_GOTO(done, FORMAT, "%s: %lld bytes", path, (long long)bytes);
    *text = calloc(1, (size_t)bytes + 1);
    if (!*text) FAIL_GOTO(done, NOMEM, "%s: %lld bytes", path, (long long)bytes);
    TRY_GOTO(done, source_read_at(fd, path, 0, *text, (size_t)bytes));
    if (memchr(*text, 0, (size_t)bytes)) FAIL_GOTO(done, FORMAT, "%s: holds a zero byte", path);
    size_t lines = 1;
    for (const char *p = *text; (p = strchr(p, '\n')); p++)
        lines++;
    *rows = calloc(lines, sizeof **rows);
    if (!*rows) FAIL_GOTO(done, NOMEM, "%s: %zu lines", path, lines);
    s = csv_rows(path, *text, *rows, n);
done:
    close(fd);
    return s;
}

/* Where a file's class stands, for every kind of labels. */
typedef struct {
    const pack_options *o;
    size_t root;
    csv_row *rows;
    size_t n_rows;
} class_book;

static const char *class_look_up(const class_book *b, const char *path, size_t *bytes)
{
    if (b->o->labels != PACK_LABELS_CSV) return class_of(path, b->root, b->o->labels, bytes);
    const char *name = path + b->root;
    const csv_row key = {.file = name + strspn(name, "/")};
    const csv_row *row =
        b->n_rows ? bsearch(&key, b->rows, b->n_rows, sizeof *b->rows, by_file) : NULL;
    *bytes = row ? strlen(row->label) : 0;
    return row ? row->label : "";
}

static ddpm_status classes_assign(pack_source *out, folder_state *f, const class_book *b)
{
    size_t bytes = 0, tidy = 4096;
    for (size_t i = 0; i < f->paths.n; i++) {
        const char *name = class_look_up(b, f->paths.v[i], &bytes);
        if (bytes) TRY(name_list_add(&f->classes, name, bytes));
        if (f->classes.n < tidy) continue;
        name_list_unique(&f->classes); /* keeps the list near the number of classes */
        tidy = 2 * f->classes.n + 4096;
    }
    name_list_unique(&f->classes);
    REQUIRE(f->classes.n >= 1, FORMAT,
            b->o->labels == PACK_LABELS_FOLDER
                ? "no file lies in a sub-folder that would be its class"
            : b->o->labels == PACK_LABELS_PREFIX ? "no file's name has a '_' after its class"
                                                 : "the CSV file names none of the files");
    REQUIRE(f->classes.n <= 1 << 20, FORMAT, "%zu classes, at most 2^20", f->classes.n);
    out->labels = calloc(f->paths.n, sizeof *out->labels);
    REQUIRE(out->labels, NOMEM, "%zu labels", f->paths.n);
    for (size_t i = 0; i < f->paths.n; i++) {
        const char *name = class_look_up(b, f->paths.v[i], &bytes);
        out->labels[i] = bytes ? name_list_find(&f->classes, name, bytes) : -1;
    }
    out->classes = f->classes.v;
    out->n_classes = (int)f->classes.n;
    f->classes = (name_list){0};
    return DDPM_OK;
}

static ddpm_status labels_find(const char *path, const pack_options *o, pack_source *out,
                               folder_state *f, bool is_folder)
{
    char *text = NULL;
    class_book b = {.o = o, .root = strlen(path)};
    const char *slash = strrchr(path, '/');
    if (!is_folder)
        b.root = slash ? (size_t)(slash + 1 - path) : 0; /* a single file's name is all it has */
    ddpm_status s = DDPM_OK;
    if (o->labels == PACK_LABELS_CSV) s = csv_read(o->csv, &text, &b.rows, &b.n_rows);
    if (!s) s = classes_assign(out, f, &b);
    free(b.rows);
    free(text);
    return s ? status_context(s, "%s", path) : s;
}

/* ---- the source ---- */

static void folder_close(pack_source *s)
{
    folder_state *f = s->state;
    if (f) {
        name_list_release(&f->paths);
        name_list_release(&f->classes);
        free(f);
    }
    source_release(s);
}

/* A list of labels that lies among the images is not one of them. */
static void drop_csv(name_list *l, const char *csv)
{
    struct stat a, b;
    if (!csv || stat(csv, &a)) return;
    size_t n = 0;
    for (size_t i = 0; i < l->n; i++) {
        const size_t length = strlen(l->v[i]);
        const bool may_be = length > 4 && !strcasecmp(l->v[i] + length - 4, ".csv");
        if (may_be && stat(l->v[i], &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
            free(l->v[i]);
        else
            l->v[n++] = l->v[i];
    }
    l->n = n;
}

ddpm_status source_open_folder(const char *path, const pack_options *o, pack_source *out)
{
    ddpm_status s = DDPM_OK;
    pack_source src = {.needs_decoder = true, .close = folder_close};
    folder_state *f = calloc(1, sizeof *f);
    REQUIRE(f, NOMEM, "%s: %zu bytes", path, sizeof *f);
    src.state = f;
    struct stat st;
    if (stat(path, &st)) {
        s = FAIL_ERRNO("%s: %s", path, strerror(errno));
        goto fail;
    }
    const bool is_folder = S_ISDIR(st.st_mode);
    if (is_folder)
        TRY_GOTO(fail, walk(&f->paths, path, 0));
    else
        TRY_GOTO(fail, name_list_add(&f->paths, path, strlen(path)));
    drop_csv(&f->paths, o->csv);
    name_list_unique(&f->paths);
    if (f->paths.n == 0) FAIL_GOTO(fail, FORMAT, "%s: no files", path);
    src.n = (int64_t)f->paths.n;
    src.paths = (const char *const *)f->paths.v;
    if (o->labels != PACK_LABELS_NONE) TRY_GOTO(fail, labels_find(path, o, &src, f, is_folder));
    *out = src;
    return DDPM_OK;
fail:
    folder_close(&src);
    return s;
}
