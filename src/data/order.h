/* order.h - a keyed permutation of 0 .. n-1, computed one position at a time: no array, no state.
 */
#ifndef DATA_ORDER_H
#define DATA_ORDER_H

#include <stdint.h>

/* Where position i goes under (key, epoch): a bijection of 0 .. n-1 for every key and epoch.
 * 1 <= n < 2^56, i < n. About half a microsecond. */
uint64_t order_at(uint64_t key, uint32_t epoch, uint64_t n, uint64_t i);

#endif
