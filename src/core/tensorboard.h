/* tensorboard.h - scalars as TensorBoard reads them: one event file a session in the run folder. */
#ifndef CORE_TENSORBOARD_H
#define CORE_TENSORBOARD_H

#include "ddpm/status.h"

#include <stdint.h>

typedef struct tensorboard tensorboard;

/* Creates DIR/events.out.tfevents.SECONDS.HOST.PID and declares steps from first_step on in earlier
 * files void. Where built without protobuf-c or ISA-L: DDPM_OK and *out NULL. */
ddpm_status tensorboard_open(const char *dir, int64_t first_step, tensorboard **out);
void tensorboard_close(tensorboard *t); /* accepts NULL */
/* n scalars of one step; takes no memory. Returns 0, or errno of a write that failed and was
 * undone. t may be NULL. */
int tensorboard_write(tensorboard *t, int64_t step, const char *const *names, const double *values,
                      int n);

enum { TENSORBOARD_MAX_SCALARS = 64 };

#endif
