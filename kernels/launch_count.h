/* launch_count.h - how many kernels an op launches, found by its own launch code with nothing launched.
 *
 * While a thread counts, launch_kernel adds one instead of launching, so that plans of a step need no GPU and no second
 * formula. Launchers take shapes alone into account, so NULL pointers are as good as others (they count as aligned). */
#ifndef KERNELS_LAUNCH_COUNT_H
#define KERNELS_LAUNCH_COUNT_H

#ifdef __cplusplus
extern "C" {
#endif

/* From now on this thread's launches are counted into *launches and do not happen; NULL: they happen again. */
void launch_count(int *launches);
/* Is this thread counting? Then a launch counts as done; where `of` is above 0 that many are added. */
int launch_is_counted(int of);

#ifdef __cplusplus
}
#endif
#endif
