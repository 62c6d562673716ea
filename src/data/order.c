/* order.c - shuffling without an array.
 *
 * Job        which image stands at position i of an epoch, as a pure function of the key.
 * Method     a Feistel network over the smallest even number of bits that holds n, its round
 *            function drawn from Philox; a value that falls beyond n is sent through again (cycle
 *            walking), which keeps the map a bijection of 0 .. n-1.
 * Cost       the network's domain is below 4 n, so fewer than 4 passes of 8 draws on average.
 * Rejected   a Fisher-Yates array: 8 bytes an image, an O(n) wait at every epoch, and a state to
 *            save; i * a + b mod n: neighbours stay neighbours. */
#include "order.h"

#include "philox.h"

enum { ROUNDS = 8 };

uint64_t order_at(uint64_t key, uint32_t epoch, uint64_t n, uint64_t i)
{
    unsigned half = 1;
    while (half < 28 && (UINT64_C(1) << (2 * half)) < n)
        half++;
    const uint64_t mask = (UINT64_C(1) << half) - 1;
    uint64_t x = i;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            const philox4 draw = philox_draw(key, PHILOX_ORDER, epoch, round << 48 | right, 0);
            const uint64_t next = left ^ (draw.v[0] & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= n);
    return x;
}
