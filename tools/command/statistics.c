#include "statistics.h"

#include <math.h>

static const double z = 1.959963984540054; /* 95 % of a normal distribution lie in -z to z */

/* Wilson's score interval (J. Am. Stat. Assoc. 22, 1927), which holds for few questions and shares near 0 and 1. */
interval statistics_share(size_t right, size_t n) {
    double x = (double)right, all = (double)n, middle = 2 * x + z * z, size = 2 * (all + z * z);
    double half = z * sqrt(z * z + 4 * x * (1 - x / all));
    interval result;
    result.low = right ? (middle - half) / size : 0;
    result.high = right < n ? (middle + half) / size : 1;
    return result;
}

/* The correlation of the two answers to a question, a positive one corrected for continuity; 0 where one of the
   settings has all right or all wrong. */
static double correlation(const paired_counts *c, double n) {
    double a = (double)c->both, b = (double)c->gained, d = (double)c->lost, e = (double)c->neither;
    double product = (a + b) * (d + e) * (a + d) * (b + e), excess = a * e - b * d;
    if (excess > 0) excess = fmax(excess - n / 2, 0);
    return product > 0 ? excess / sqrt(product) : 0;
}

/* Of a difference whose parts lie so far from their ends, the distance to its own. */
static double distance(double first, double second, double phi) {
    return sqrt(fmax(first * first - 2 * phi * first * second + second * second, 0));
}

/* Method 10 of R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
   paired data", Statistics in Medicine 17, 1998, 2635-2650: Wilson's intervals of both shares, squared and added. It
   covers what it should for few questions, too, where Wald's interval is too narrow, and of no width when nothing
   differs. */
interval statistics_difference(const paired_counts *c) {
    size_t n = c->both + c->gained + c->lost + c->neither, right[2];
    double all = (double)n, phi = correlation(c, all), difference = ((double)c->gained - (double)c->lost) / all;
    interval first, second, result;
    double p1, p2;
    right[0] = c->both + c->gained;
    right[1] = c->both + c->lost;
    first = statistics_share(right[0], n);
    second = statistics_share(right[1], n);
    p1 = (double)right[0] / all;
    p2 = (double)right[1] / all;
    result.low = difference - distance(p1 - first.low, second.high - p2, phi);
    result.high = difference + distance(first.high - p1, p2 - second.low, phi);
    return result;
}

/* Two-sided: twice the smaller tail of so many fair coins, in logarithms, as 2^n has no double from 1024 on. */
double statistics_mcnemar(size_t gained, size_t lost) {
    size_t i, fewer = gained < lost ? gained : lost;
    double n = (double)gained + (double)lost, tail = 0;
    for (i = 0; i <= fewer; i++)
        tail += exp(lgamma(n + 1) - lgamma((double)i + 1) - lgamma(n - (double)i + 1) - n * log(2));
    return fmin(2 * tail, 1);
}
