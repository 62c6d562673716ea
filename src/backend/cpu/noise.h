/* noise.h - rows of Philox words and of normals, for ops that draw inside (gaussian, q_sample, dropout, ...). */
#ifndef BACKEND_CPU_NOISE_H
#define BACKEND_CPU_NOISE_H

#include "ops.h"

/* Elements drawn at a time: 4 KiB, so that the row that uses them finds them in the first-level cache. */
#define NOISE_PIECE 1024
/* Room for a piece that does not start at a multiple of 4: words come four at a time. */
#define NOISE_ROOM (NOISE_PIECE + 8)

/* Of one image: the key of philox.h but the element. */
struct noise_key {
    uint64_t seed, index;
    uint32_t purpose, step;
};

static inline struct noise_key noise_key_of(const struct step_state *state, const uint64_t *index, int64_t n,
                                            uint32_t purpose, bool use_step)
{
    return (struct noise_key){.seed = state->seed,
                              .index = index[n],
                              .purpose = purpose,
                              .step = use_step ? state->step : 0};
}

/* Words of elements first .. first+count-1, count <= NOISE_PIECE. Gives where the first lies in `room` (the words of a block
 * come together, and `first` may be in the middle of one). */
const uint32_t *noise_words(const struct noise_key *key, int64_t first, int64_t count, uint32_t room[NOISE_ROOM]);
/* Normals of elements first .. first+count-1, likewise. */
const float *noise_normals(const struct noise_key *key, int64_t first, int64_t count, float room[NOISE_ROOM]);

#endif
