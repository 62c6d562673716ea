/* main.c - the program: which command, and what this build is.
 *
 * `ddpm WHAT ...` hands the rest of the line to cmd_WHAT with argv[0] = "ddpm WHAT". A word that is
 * no command names the nearest one. No locale is set, so that numbers are read and written as in C.
 */
#include "cli.h"

#include "build_info.h"
#include "ddpm/backend.h"
#include "fail.h"

#include <stdio.h>
#include <string.h>

static const char help_pack[] = "images, idx, CIFAR binary or npz files to a pack";
static const char help_train[] =
    "a configuration and a run folder to checkpoints; run again, it resumes";
static const char help_sample[] = "a checkpoint or run to images: npz shards, PNG grid, animation";
static const char help_merge[] = "shards of samples to one npz file";
static const char help_bench[] = "how fast this machine trains, samples and computes each op";
static const char help_plan[] = "parameters, multiply-adds and memory of a configuration, by layer";
static const char help_info[] = "what a file or folder is; --verify checks every hash";

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
#define X(name) {#name, cmd_##name, help_##name},
    CLI_COMMANDS(X)
#undef X
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out)
{
    fprintf(out, "Usage: ddpm COMMAND [ARGUMENT...]\n"
                 "Trains denoising diffusion models on images, and samples them.\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].help);
    fprintf(out,
            "\n`ddpm COMMAND --help` shows its options, their defaults and an example.\n"
            "`ddpm --version` shows what is built in.\n\n"
            "First steps:\n"
            "  ddpm pack photos/ -o photos.pack --size 64 --fit crop\n"
            "  ddpm train configs/ddpm-cifar10.yaml --run runs/photos --set data.pack=photos.pack\n"
            "  ddpm sample runs/photos -n 64 -o samples\n");
}

/* One line for each kind of device: its name, or why it cannot be used. */
static void print_backend(const char *device)
{
    ddpm_backend *be = NULL;
    if (ddpm_backend_create(device, 0, &be) == DDPM_OK)
        printf("  %s\n", ddpm_backend_name(be));
    else
        printf("  %s: no (%s)\n", device, ddpm_last_error());
    ddpm_backend_free(be);
}

static void print_version(void)
{
    printf("ddpm %s%s%s\n", BUILD_VERSION, *BUILD_COMMIT ? ", commit " : "", BUILD_COMMIT);
    printf("compiler: %s, %s\n", BUILD_COMPILER, BUILD_TYPE);
    printf("backends:\n");
    print_backend("cpu");
    print_backend("cuda");
    printf("options:\n");
    printf("  TensorBoard: %s\n",
           BUILD_HAS_TENSORBOARD ? "yes" : "no (needs protobuf-c and ISA-L)");
    printf("  WebP animation: %s\n", BUILD_HAS_WEBP ? "yes" : "no (needs libwebpmux)");
    printf("  CUDA: %s\n", BUILD_HAS_CUDA ? "yes" : "no");
}

static const struct command *find_command(const char *word)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(word, commands[i].name) == 0) return &commands[i];
    return NULL;
}

static int unknown_command(const char *word)
{
    if (*word == '-') return cli_fail("ddpm", FAIL(ARG, "unknown option %.80s", word), NULL, NULL);
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i].name;
    const char *near = cli_nearest(word, names, N_COMMANDS);
    const ddpm_status s =
        near ? FAIL(ARG, "unknown command \"%.80s\"; the nearest is `ddpm %s`", word, near)
             : FAIL(ARG, "unknown command \"%.80s\"", word);
    return cli_fail("ddpm", s, NULL, NULL);
}

static int run_command(const struct command *c, int argc, char **argv)
{
    char name[32];
    snprintf(name, sizeof name, "ddpm %s", c->name);
    argv[0] = name;
    return c->run(argc, argv);
}

int main(int argc, char **argv)
{
    cli_prepare_streams();
    if (argc < 2) {
        print_help(stderr);
        return ddpm_status_exit_code(DDPM_ARG);
    }
    char *word = argv[1];
    if (strcmp(word, "help") == 0 && argc > 2) { /* ddpm help train = ddpm train --help */
        char help[] = "--help", *line[] = {argv[0], help, NULL};
        const struct command *asked = find_command(argv[2]);
        return asked ? run_command(asked, 2, line) : unknown_command(argv[2]);
    }
    const bool is_help =
        strcmp(word, "help") == 0 || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
    const bool is_version = strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0;
    if (is_help || is_version) {
        is_help ? print_help(stdout) : print_version();
        const ddpm_status s = cli_flush_output();
        return s ? cli_fail("ddpm", s, NULL, NULL) : 0;
    }
    const struct command *c = find_command(word);
    return c ? run_command(c, argc - 1, argv + 1) : unknown_command(word);
}
