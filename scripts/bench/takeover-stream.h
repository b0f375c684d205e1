/*
 * What takeover-load says, and what it makes of an answer that is not the same: the bytes of each connection's stream,
 * by their place in it, and the lines for the service print.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { CHUNK = 64 * 1024 }; /* the most that is sent, or looked at, at a time */

/* Each aligned 8 bytes of a stream are its connection's number and their own place in it, mixed so that no two
 * bytes look alike, in a way that can be undone: wherever such a word turns up, it says where it belongs. */
enum { PLACE = 40 };
#define ODD 0x9e3779b97f4a7c15ULL

static uint64_t word(uint32_t id, uint64_t place) {
    uint64_t mixed = ((uint64_t)id << PLACE | place) * ODD;
    return (mixed ^ mixed >> 32) * ODD;
}

static uint64_t unmixed(const unsigned char *at) {
    static uint64_t inverse = ODD;
    while (inverse * ODD != 1)
        inverse *= 2 - inverse * ODD; /* doubles the number of right bits */
    uint64_t mixed;
    memcpy(&mixed, at, sizeof mixed);
    mixed *= inverse;
    return (mixed ^ mixed >> 32) * inverse;
}

/* The bytes of stream `id` from `from` on; points into a buffer that the next call reuses. */
static const unsigned char *stream(uint32_t id, uint64_t from, size_t size) {
    static uint64_t words[CHUNK / 8 + 2];
    for (size_t i = 0; i <= (from % 8 + size) / 8; i++)
        words[i] = word(id, from / 8 + i);
    return (unsigned char *)words + from % 8;
}

enum fault { REFUSED, UNANSWERED, RESET, DROPPED, LOST, DOUBLED, REORDERED, CORRUPT, FAULTS };
static const char *const FAULT[] = {"refused", "unanswered", "reset",     "dropped",
                                    "lost",    "doubled",    "reordered", "corrupt"};

/* What it is a sign of that the byte at `from`, of `sent`, was a wrong one, by the words found among it and those that
 * came after it. `ids`: the last stream there is. */
static enum fault diagnosis(uint32_t id, uint64_t from, uint64_t sent, uint32_t ids, const unsigned char *came,
                            size_t size, char why[100]) {
    for (size_t at = 0; at + 8 <= size; at++) {
        uint64_t found = unmixed(came + at), place = (found & ((1ULL << PLACE) - 1)) * 8;
        uint32_t whose = found >> PLACE;
        if (whose && whose != id && whose <= ids && place < 1ULL << 32) {
            sprintf(why, "bytes of connection %u came", whose);
            return CORRUPT;
        }
        if (whose != id || place > sent)
            continue;
        long long shift = place - (from + at);
        if (shift == 0) {
            sprintf(why, "wrong ones among %zu bytes", at);
            return CORRUPT;
        }
        if (shift < 0) {
            sprintf(why, "%lld bytes came that were not due", -shift);
            return DOUBLED;
        }
        uint64_t missing = (from + 7) / 8; /* the first whole word of what was passed over, if there is one */
        for (size_t later = at; missing * 8 + 8 <= from + shift && later + 8 <= size; later++)
            if (unmixed(came + later) == ((uint64_t)id << PLACE | missing)) {
                sprintf(why, "%lld bytes came later", shift);
                return REORDERED;
            }
        sprintf(why, "%lld bytes did not come", shift);
        return LOST;
    }
    sprintf(why, "wrong ones among %zu bytes", size);
    return CORRUPT;
}

/* Line `line` of connection `id`: the driver makes the same text, and compares. */
static int line_text(char text[200], uint32_t id, uint32_t line, int last) {
    int size = sprintf(text, "%u %u ", id, line);
    unsigned padding = (id * 31 + line * 7) % 120;
    memset(text + size, 'a' + (id + line) % 26, padding);
    return size + padding + sprintf(text + size + padding, last ? " end\n" : "\n");
}
