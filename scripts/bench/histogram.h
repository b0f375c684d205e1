/* Latencies, from which percentiles are read. */

#include <stdint.h>

/* Of nanoseconds: 32 buckets to each power of two, so a percentile is right to 3 %. */
static uint64_t buckets[64 * 32];

static void record(uint64_t ns) {
    int shift = ns < 32 ? 0 : 58 - __builtin_clzll(ns);
    buckets[shift * 32 + (ns >> shift)]++;
}

static double percentile_us(double share) {
    uint64_t all = 0, seen = 0;
    for (unsigned i = 0; i < 64 * 32; i++)
        all += buckets[i];
    for (unsigned i = 0; i < 64 * 32; i++)
        if ((seen += buckets[i]) > all * share)
            return (i < 64 ? i : (uint64_t)(32 + i % 32) << (i / 32 - 1)) / 1000.0;
    return 0;
}
