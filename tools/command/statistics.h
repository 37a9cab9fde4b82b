/* How sure one can be of a share, and of the difference between two that the same questions gave. */
#ifndef STATISTICS_H
#define STATISTICS_H

#include <stddef.h>

typedef struct interval { double low, high; } interval; /* 95 % */

/* What two settings made of n questions. */
typedef struct paired_counts {
    size_t both, gained, lost, neither; /* right; gained: only the first was */
} paired_counts;

/* Of `right` of n, n above 0, in [0, 1]. */
interval statistics_share(size_t right, size_t n);
/* Of the first's share less the second's, in [-1, 1]. */
interval statistics_difference(const paired_counts *counts);
/* McNemar's exact test: how likely so uneven a split of the questions that differ is, where both are as good. */
double statistics_mcnemar(size_t gained, size_t lost);

#endif
