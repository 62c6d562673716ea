/* lock.c - folders, and the lock that keeps two jobs out of one run folder (see commit.h).
 *
 * An open-file-description lock belongs to the descriptor: the kernel drops it however the process
 * ends, so no lock is ever stale, and NFSv4 and Lustre (mounted with -o flock) carry it between
 * hosts. A lock file without a kernel lock was rejected: after SIGKILL it needs a guess. The file
 * stays when the lock goes: removing it would let a third process lock a name that a second one has
 * open. */
#include "commit.h"

#include "fail.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct run_lock {
    int fd;
};

/* Creates one folder; one that is there already is fine. */
static ddpm_status make_one(const char *path)
{
    if (mkdir(path, 0777) == 0) return DDPM_OK;
    const int err = errno;
    struct stat st;
    if (stat(path, &st) == 0) {
        REQUIRE(S_ISDIR(st.st_mode), CANTCREAT,
                "%s: cannot create the folder, a file is in the way", path);
        return DDPM_OK;
    }
    errno = err;
    if (err == ENOENT) return FAIL(CANTCREAT, "%s: cannot create the folder: %m", path);
    return FAIL_ERRNO("%s: cannot create the folder: %m", path);
}

ddpm_status make_folder(const char *path)
{
    REQUIRE(*path, CANTCREAT, "the name of a folder is empty");
    char *copy = strdup(path);
    REQUIRE(copy, NOMEM, "%s: no memory for the name", path);
    ddpm_status s = DDPM_OK;
    for (char *p = copy + 1; *p && !s; p++) {
        if (*p != '/' || p[-1] == '/') continue;
        *p = '\0';
        s = make_one(copy);
        *p = '/';
    }
    if (!s) s = make_one(copy);
    free(copy);
    return s;
}

/* What the holder wrote into the lock file, for the message. */
static void read_holder(int fd, char *dst, size_t size)
{
    const ssize_t n = pread(fd, dst, size - 1, 0);
    dst[n > 0 ? n : 0] = '\0';
    dst[strcspn(dst, "\n")] = '\0';
    if (!*dst) snprintf(dst, size, "a process that has not said its name");
}

static ddpm_status write_holder(int fd, const char *dir)
{
    char host[65] = "", line[160];
    gethostname(host, sizeof host - 1);
    const time_t now = time(NULL);
    struct tm tm;
    char when[32] = "";
    if (gmtime_r(&now, &tm)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    const int n = snprintf(line, sizeof line, "%s %ld %s\n", host, (long)getpid(), when);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, line, (size_t)n, 0) != n)
        return FAIL_ERRNO("%s/lock: cannot write: %m", dir);
    return DDPM_OK;
}

static ddpm_status take_lock(const char *dir, const char *path, int *fd)
{
    *fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (*fd < 0 && errno == ENOENT) return FAIL(CANTCREAT, "%s: the folder does not exist", dir);
    if (*fd < 0) return FAIL_ERRNO("%s: cannot open: %m", path);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(*fd, F_OFD_SETLK, &whole) == 0) return DDPM_OK;
    if (errno == EAGAIN || errno == EACCES) {
        char holder[160];
        read_holder(*fd, holder, sizeof holder);
        return FAIL(LOCKED, "%s: in use by %s; wait for its end, or choose another folder", dir,
                    holder);
    }
    return FAIL(
        IO, "%s: this file system gives no lock: %m (Lustre needs the mount option 'flock')", path);
}

ddpm_status lock_acquire(const char *dir, run_lock **out)
{
    ddpm_status s = DDPM_OK;
    *out = NULL;
    run_lock *l = calloc(1, sizeof *l);
    REQUIRE(l, NOMEM, "%s: %zu bytes", dir, sizeof *l);
    l->fd = -1;
    const size_t size = strlen(dir) + sizeof "/lock";
    char *path = malloc(size);
    if (!path) FAIL_GOTO(fail, NOMEM, "%s: %zu bytes", dir, size);
    snprintf(path, size, "%s/lock", dir);

    TRY_GOTO(fail, take_lock(dir, path, &l->fd));
    TRY_GOTO(fail, write_holder(l->fd, dir));
    free(path);
    *out = l;
    return DDPM_OK;
fail:
    free(path);
    if (l->fd >= 0) close(l->fd); /* not ours to empty: another holds it */
    free(l);
    return s;
}

void lock_release(run_lock *l)
{
    if (!l) return;
    /* Explicitly, as a child that was forked meanwhile shares the description and would keep the
     * lock. */
    struct flock whole = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    (void)!ftruncate(l->fd, 0);
    fcntl(l->fd, F_OFD_SETLK, &whole);
    close(l->fd);
    free(l);
}
