/* The intervals and the test of `eval`, beside published values and sums of whole numbers. */
#include "test.h"

#include "../tools/command/statistics.c"

static int is_near(double a, double b, double tolerance) { return fabs(a - b) <= tolerance; }

#define CHECK_NEAR(a, b, tolerance) \
    test_check(is_near(a, b, tolerance), __FILE__, __LINE__, "%s is %.17g, not %.17g", #a, (double)(a), (double)(b))

/* R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998: table I,
   method 3. */
static void test_share(void) {
    static const struct { size_t right, n; double low, high; } published[] = {
        {81, 263, 0.2553, 0.3662}, {15, 148, 0.0624, 0.1605}, {0, 20, 0.0, 0.1611}, {1, 29, 0.0061, 0.1718}};
    size_t i, right;
    for (i = 0; i < sizeof published / sizeof published[0]; i++) {
        interval share = statistics_share(published[i].right, published[i].n);
        CHECK_NEAR(share.low, published[i].low, 0.00005);
        CHECK_NEAR(share.high, published[i].high, 0.00005);
    }
    /* by definition, its ends are the shares p from which right / n is z standard errors of p away */
    for (right = 0; right <= 7; right++) {
        interval share = statistics_share(right, 7);
        double p = (double)right / 7;
        CHECK_NEAR((p - share.low) * (p - share.low), 3.841458820694124 * share.low * (1 - share.low) / 7, 1e-12);
        CHECK_NEAR((share.high - p) * (share.high - p), 3.841458820694124 * share.high * (1 - share.high) / 7, 1e-12);
        CHECK(share.low >= 0 && share.high <= 1 && share.low <= p && p <= share.high);
    }
}

static interval difference_of(size_t both, size_t gained, size_t lost, size_t neither) {
    paired_counts counts;
    counts.both = both;
    counts.gained = gained;
    counts.lost = lost;
    counts.neither = neither;
    return statistics_difference(&counts);
}

static void test_difference(void) {
    interval d = difference_of(36, 12, 2, 0);
    /* method 10 in Newcombe's paper, table II */
    CHECK_NEAR(d.low, 0.0569, 0.00005);
    CHECK_NEAR(d.high, 0.3404, 0.00005);
    /* Fagerland, Lydersen and Laake, "Recommended tests and confidence intervals for paired binomial proportions",
       Statistics in Medicine 33, 2014: airway hyper-responsiveness */
    d = difference_of(1, 1, 7, 12);
    CHECK_NEAR(d.low, -0.507, 0.0005);
    CHECK_NEAR(d.high, -0.026, 0.0005);
    /* the R package contingencytables (Fagerland) has this one in its tests */
    d = difference_of(59, 6, 16, 80);
    CHECK_NEAR(d.low, -0.1186, 0.00005);
    CHECK_NEAR(d.high, -0.0046, 0.00005);
    /* nothing differs: still not sure; all right: by hand, from Wilson's z^2 / (n + z^2) */
    d = difference_of(60, 0, 0, 0);
    CHECK_NEAR(d.low, -3.841458820694124 / 63.841458820694124, 1e-12);
    CHECK_NEAR(d.high, 3.841458820694124 / 63.841458820694124, 1e-12);
}

/* Whatever the counts are: the interval holds the difference and nothing beyond 1; sides may change places, and so may
   right and wrong on both. */
static void test_difference_everywhere(void) {
    size_t both, gained, lost, n = 9;
    for (both = 0; both <= n; both++)
        for (gained = 0; both + gained <= n; gained++)
            for (lost = 0; both + gained + lost <= n; lost++) {
                size_t neither = n - both - gained - lost;
                double p = ((double)gained - (double)lost) / (double)n;
                interval d = difference_of(both, gained, lost, neither);
                interval swapped = difference_of(both, lost, gained, neither);
                interval wrong_for_right = difference_of(neither, gained, lost, both);
                CHECK(d.low >= -1 - 1e-12 && d.high <= 1 + 1e-12 && d.low <= p && p <= d.high && d.low < d.high);
                CHECK_NEAR(d.low, -swapped.high, 1e-12);
                CHECK_NEAR(d.high, -swapped.low, 1e-12);
                CHECK_NEAR(d.low, wrong_for_right.low, 1e-12);
                CHECK_NEAR(d.high, wrong_for_right.high, 1e-12);
            }
}

/* Every way in which n coins may fall, counted: those as uneven as the one at hand, or more. */
static double count_coins(int gained, int lost) {
    unsigned n = (unsigned)(gained + lost), ways, uneven = 0;
    for (ways = 0; ways < 1u << n; ways++) {
        int heads = 0;
        unsigned i;
        for (i = 0; i < n; i++) heads += (int)(ways >> i & 1);
        uneven += abs(heads - ((int)n - heads)) >= abs(gained - lost);
    }
    return (double)uneven / (double)(1u << n);
}

static void test_mcnemar(void) {
    int gained, lost;
    for (gained = 0; gained <= 6; gained++)
        for (lost = 0; lost <= 6; lost++)
            CHECK_NEAR(statistics_mcnemar((size_t)gained, (size_t)lost), count_coins(gained, lost), 1e-12);
    /* exact fractions of Python's */
    CHECK_NEAR(statistics_mcnemar(16, 6), 0.052478790283203125, 1e-12);
    CHECK_NEAR(statistics_mcnemar(40, 80), 0.0003304000183913207, 1e-12);
    CHECK_NEAR(statistics_mcnemar(1200, 1300), 0.047681865221043604, 1e-9);
    CHECK(statistics_mcnemar(1000000, 1000000) <= 1);
    CHECK(statistics_mcnemar(0, 5000) >= 0);
}

int main(void) {
    test_share();
    test_difference();
    test_difference_everywhere();
    test_mcnemar();
    return test_end("test_statistics");
}
