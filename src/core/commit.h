/* commit.h - how every file becomes final: written under a temporary name in the same folder,
 * synced, optionally verified, renamed, folder synced. Until commit_finish returns DDPM_OK, the
 * previous file of that name is untouched.
 *
 * A temporary file is ".NAME.PID-K@HOST.tmp" (K counts within the process), opened
 * O_CREAT|O_EXCL|O_NOFOLLOW; commit_sweep removes those whose process is gone. ENOSPC, EDQUOT, EIO
 * at write, fsync or close fail the commit and remove the temporary; an fsync is never retried (a
 * second success proves nothing). Short writes and EINTR are continued. A rename that fails is
 * looked at again: done if the inode arrived all the same. */
#ifndef CORE_COMMIT_H
#define CORE_COMMIT_H

#include "ddpm/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct commit commit;

/* Opens the temporary for `path`. bytes_expected > 0 preallocates (fallocate), so that a full disk
 * shows before hours of writing; file systems that cannot are no error. PERM, CANTCREAT, IO, NOMEM.
 */
ddpm_status commit_begin(const char *path, uint64_t bytes_expected, commit **out);
ddpm_status commit_write(commit *c, const void *data, size_t bytes);
/* Overwrites bytes already written (a header known last). */
ddpm_status commit_write_at(commit *c, uint64_t offset, const void *data, size_t bytes);
/* For libraries that write by descriptor or stdio: borrowed, valid until finish or abandon. */
int commit_fd(commit *c);
const char *commit_temp_path(const commit *c);

/* Re-reads the temporary before it becomes final; a failure abandons the commit. */
typedef ddpm_status (*commit_verify)(const char *temp_path, void *user);
/* Frees c in every case. verify may be NULL. */
ddpm_status commit_finish(commit *c, commit_verify verify, void *user);
void commit_abandon(commit *c); /* accepts NULL */

/* One call for a small file. */
ddpm_status commit_bytes(const char *path, const void *data, size_t bytes);
/* Removes temporaries left in `dir` by processes of this host that no longer run. */
ddpm_status commit_sweep(const char *dir);

/* mkdir -p; an existing folder is fine, a file in the way is CANTCREAT. */
ddpm_status make_folder(const char *path);

/* The run folder's lock: DIR/lock, an fcntl (OFD) lock plus "host pid start time" inside. LOCKED
 * names the holder. Released by lock_release or the end of the process. */
typedef struct run_lock run_lock;
ddpm_status lock_acquire(const char *dir, run_lock **out);
void lock_release(run_lock *l); /* accepts NULL */

#endif
