/* op_variants.h - calls of ops that `ddpm bench ops` does not make: optional arguments, views, strides, accumulation. */
#ifndef TESTS_GPU_OP_VARIANTS_H
#define TESTS_GPU_OP_VARIANTS_H

#include "fail.h"
#include "op_rows.h"

extern const struct op_row op_variants[];
extern const int op_variant_count;

#endif
