/* notices.h - the lines that a backend has for its user, shown once each, as they come. */
#ifndef BACKEND_NOTICES_H
#define BACKEND_NOTICES_H

#include "ddpm/backend.h"

#include "progress.h"

/* Those behind the first *shown. */
static inline void notices_show(const ddpm_backend *be, const log_sink *sink, int *shown)
{
    for (const char *text; (text = ddpm_backend_notice(be, *shown)); (*shown)++)
        log_line(sink, "%s", text);
}

#endif
