/* commit.c - write, fsync, verify, rename, fsync the folder (see commit.h).
 *
 * The folder is opened once and everything happens relative to it, so that a renamed parent cannot
 * send the file elsewhere. Space is reserved with FALLOC_FL_KEEP_SIZE: the file's length stays what
 * was written, and what was reserved too much is given back before the sync. posix_fallocate was
 * rejected: where the file system cannot, it writes a byte into every block.
 *
 * fsync repeats only on EINTR, which reports nothing about the data; after any other error the
 * pages may be marked clean though they never arrived (Rebello et al., ATC 2020), so the file is
 * thrown away. */
#include "commit.h"

#include "fail.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HOST_SIZE = 65, TEMP_TRIES = 100 };

struct commit {
    int fd, dir_fd;   /* -1 while closed */
    char *path;       /* as given */
    char *temp_path;  /* folder of `path`, then the temporary name */
    const char *name; /* last part of path */
    const char *temp; /* last part of temp_path */
    bool has_temp;
};

static void host_name(char dst[HOST_SIZE])
{
    if (gethostname(dst, HOST_SIZE - 1) != 0) strcpy(dst, "localhost");
    dst[HOST_SIZE - 1] = '\0';
    for (char *p = dst; *p; p++)
        if (*p == '/') *p = '_';
}

static void commit_free(commit *c)
{
    if (!c) return;
    if (c->fd >= 0) close(c->fd);
    if (c->has_temp) unlinkat(c->dir_fd, c->temp, 0);
    if (c->dir_fd >= 0) close(c->dir_fd);
    free(c->path);
    free(c->temp_path);
    free(c);
}

void commit_abandon(commit *c)
{
    commit_free(c);
}

int commit_fd(commit *c)
{
    return c->fd;
}

const char *commit_temp_path(const commit *c)
{
    return c->temp_path;
}

/* Splits the path, opens its folder, and refuses early what rename would refuse after hours of
 * writing. */
static ddpm_status open_folder(commit *c, const char *path)
{
    c->path = strdup(path);
    REQUIRE(c->path, NOMEM, "%s: no memory for the name", path);
    char *slash = strrchr(c->path, '/');
    c->name = slash ? slash + 1 : c->path;
    REQUIRE(*c->name && strcmp(c->name, ".") != 0 && strcmp(c->name, "..") != 0, CANTCREAT,
            "'%s' is not the name of a file", path);

    const size_t dir_bytes = (size_t)(c->name - c->path);
    const size_t size = strlen(path) + HOST_SIZE + 64;
    c->temp_path = malloc(size);
    REQUIRE(c->temp_path, NOMEM, "%s: no memory for the name", path);
    memcpy(c->temp_path, c->path, dir_bytes);
    strcpy(c->temp_path + dir_bytes, ".");
    c->dir_fd = open(c->temp_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (c->dir_fd < 0 && errno == ENOENT)
        return FAIL(CANTCREAT, "%s: the folder does not exist; create it first", path);
    if (c->dir_fd < 0) return FAIL_ERRNO("%s: cannot open the folder: %m", path);
    c->temp = c->temp_path + dir_bytes;

    struct stat st;
    if (fstatat(c->dir_fd, c->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        REQUIRE(!S_ISDIR(st.st_mode), CANTCREAT, "%s: a folder of this name is in the way", path);
    return DDPM_OK;
}

static ddpm_status open_temp(commit *c)
{
    static atomic_uint serial;
    char host[HOST_SIZE];
    host_name(host);
    /* A number of ours may be taken by a dead process that had our id; the next one is free. */
    for (int i = 0; i < TEMP_TRIES && c->fd < 0; i++) {
        const size_t dir_bytes = (size_t)(c->temp - c->temp_path);
        sprintf(c->temp_path + dir_bytes, ".%s.%ld-%u@%s.tmp", c->name, (long)getpid(),
                atomic_fetch_add(&serial, 1), host);
        c->fd =
            openat(c->dir_fd, c->temp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (c->fd < 0 && errno != EEXIST && errno != EINTR) break;
    }
    if (c->fd < 0 && errno == ENOENT) return FAIL(CANTCREAT, "%s: the folder was removed", c->path);
    if (c->fd < 0) return FAIL_ERRNO("%s: cannot create a file here: %m", c->path);
    c->has_temp = true;
    return DDPM_OK;
}

static ddpm_status reserve(commit *c, uint64_t bytes)
{
    if (bytes == 0) return DDPM_OK;
    REQUIRE(bytes <= INT64_MAX, ARG, "%s: %llu bytes", c->path, (unsigned long long)bytes);
    int r;
    do
        r = fallocate(c->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes);
    while (r != 0 && errno == EINTR);
    if (r != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO))
        return FAIL(
            IO,
            "%s: cannot reserve %llu bytes: %m; nothing was changed, free some space and try again",
            c->path, (unsigned long long)bytes);
    return DDPM_OK;
}

ddpm_status commit_begin(const char *path, uint64_t bytes_expected, commit **out)
{
    ddpm_status s = DDPM_OK;
    *out = NULL;
    commit *c = calloc(1, sizeof *c);
    REQUIRE(c, NOMEM, "%s: %zu bytes", path, sizeof *c);
    c->fd = c->dir_fd = -1;

    TRY_GOTO(fail, open_folder(c, path));
    TRY_GOTO(fail, open_temp(c));
    TRY_GOTO(fail, reserve(c, bytes_expected));
    *out = c;
    return DDPM_OK;
fail:
    commit_free(c);
    return s;
}

static ddpm_status write_failed(const commit *c)
{
    return FAIL_ERRNO("%s: cannot write: %m; the file of that name, if any, is as it was", c->path);
}

ddpm_status commit_write(commit *c, const void *data, size_t bytes)
{
    const char *p = data;
    while (bytes > 0) {
        const ssize_t n = write(c->fd, p, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO; /* neither progress nor reason: not worth a loop */
        if (n <= 0) return write_failed(c);
        p += n;
        bytes -= (size_t)n;
    }
    return DDPM_OK;
}

ddpm_status commit_write_at(commit *c, uint64_t offset, const void *data, size_t bytes)
{
    const char *p = data;
    while (bytes > 0) {
        const ssize_t n = pwrite(c->fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO;
        if (n <= 0) return write_failed(c);
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return DDPM_OK;
}

static int sync_fd(int fd)
{
    int r;
    do
        r = fsync(fd);
    while (r != 0 && errno == EINTR);
    return r;
}

/* Moves the temporary to its name. NFS may answer a repeated request with an error though the first
 * one worked: what stands there now decides. */
static ddpm_status rename_temp(commit *c, const struct stat *written)
{
    int r;
    do
        r = renameat(c->dir_fd, c->temp, c->dir_fd, c->name);
    while (r != 0 && errno == EINTR);
    if (r != 0) {
        const int err = errno;
        struct stat st;
        if (fstatat(c->dir_fd, c->name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            st.st_ino != written->st_ino || st.st_dev != written->st_dev) {
            errno = err;
            return FAIL_ERRNO(
                "%s: cannot rename into place: %m; the file of that name, if any, is as it was",
                c->path);
        }
    }
    c->has_temp = false;
    return DDPM_OK;
}

ddpm_status commit_finish(commit *c, commit_verify verify, void *user)
{
    ddpm_status s = DDPM_OK;
    struct stat st;
    if (fstat(c->fd, &st) != 0) {
        s = FAIL_ERRNO("%s: cannot look at the new file: %m", c->path);
        goto fail;
    }
    /* Gives back what was reserved too much; a file system that cannot loses nothing but that. */
    if (st.st_blocks * 512 > st.st_size) (void)!ftruncate(c->fd, st.st_size);
    if (sync_fd(c->fd) != 0) {
        s = write_failed(c);
        goto fail;
    }
    if (verify) {
        posix_fadvise(c->fd, 0, 0,
                      POSIX_FADV_DONTNEED); /* so that the disk is read, not the cache */
        TRY_GOTO(fail, verify(c->temp_path, user));
    }
    const int fd = c->fd;
    c->fd = -1;
    /* EINTR: Linux has closed it, and the sync above spoke for the data. */
    if (close(fd) != 0 && errno != EINTR) {
        s = write_failed(c);
        goto fail;
    }
    TRY_GOTO(fail, rename_temp(c, &st));
    if (sync_fd(c->dir_fd) != 0 &&
        errno != EINVAL) /* EINVAL: folders of this file system need no sync */
        s = FAIL_ERRNO(
            "%s: the file is complete, but its folder could not be synced: %m; a crash of the "
            "machine may bring the earlier one back",
            c->path);
fail:
    commit_free(c);
    return s;
}

ddpm_status commit_bytes(const char *path, const void *data, size_t bytes)
{
    commit *c;
    TRY(commit_begin(path, bytes, &c));
    const ddpm_status s = commit_write(c, data, bytes);
    if (s) {
        commit_abandon(c);
        return s;
    }
    return commit_finish(c, NULL, NULL);
}

/* Whether `name` is a temporary of this host whose process is gone. */
static bool is_orphan(const char *name, const char *host)
{
    const char *at = strrchr(name, '@');
    if (name[0] != '.' || !at) return false;
    const size_t host_bytes = strlen(host);
    if (strncmp(at + 1, host, host_bytes) != 0 || strcmp(at + 1 + host_bytes, ".tmp") != 0)
        return false;
    const char *p = at; /* backwards over ".PID-K" */
    while (p > name && p[-1] >= '0' && p[-1] <= '9')
        p--;
    if (p == at || p == name || p[-1] != '-') return false;
    const char *pid_end = --p;
    while (p > name && p[-1] >= '0' && p[-1] <= '9')
        p--;
    if (p == pid_end || pid_end - p > 9 || p == name || p[-1] != '.') return false;
    const long pid = strtol(p, NULL, 10);
    return pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH;
}

ddpm_status commit_sweep(const char *dir)
{
    char host[HOST_SIZE];
    host_name(host);
    DIR *d = opendir(dir);
    if (!d) return FAIL_ERRNO("%s: cannot list the folder: %m", dir);
    ddpm_status s = DDPM_OK;
    for (const struct dirent *e; (e = readdir(d));) {
        if (!is_orphan(e->d_name, host)) continue;
        if (unlinkat(dirfd(d), e->d_name, 0) != 0 && errno != ENOENT && !s)
            s = FAIL_ERRNO("%s/%s: cannot remove what a dead process left: %m", dir, e->d_name);
    }
    closedir(d);
    return s;
}
