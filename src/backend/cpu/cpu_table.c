/* cpu_table.c - the CPU's functions in the order of OP_LIST; one that is missing does not link. */
#include "cpu.h"

const struct ops cpu_ops = {
#define X(op) .op = cpu_##op,
    OP_LIST(X)
#undef X
};
