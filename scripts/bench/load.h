/* What the load generators have in common: the clock, pauses, the way to fail, and as many descriptors as they may have. */

#define _GNU_SOURCE /* program_invocation_short_name */
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static const uint64_t SECOND = 1000000000;

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...) {
    va_list words;
    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* Without giving the core away: what it waits for comes sooner. */
static inline void pause_for(uint64_t nanoseconds) {
    for (uint64_t end = now() + nanoseconds; now() < end;)
        ;
}

/* A line on stdin, whatever is in it, is the word to go; its end is the word to stop. */
static inline int told_to_go(void) {
    int byte;
    while ((byte = getchar()) != '\n' && byte != EOF)
        ;
    return byte != EOF;
}

/* How many there are now. */
static rlim_t raise_descriptors(void) {
    struct rlimit descriptors;
    if (getrlimit(RLIMIT_NOFILE, &descriptors) < 0)
        fail("getrlimit: %s", strerror(errno));
    descriptors.rlim_cur = descriptors.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &descriptors) < 0)
        fail("setrlimit: %s", strerror(errno));
    return descriptors.rlim_cur;
}
