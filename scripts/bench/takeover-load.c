/*
 * The load of scripts/labs/takeover-soak and scripts/bench/takeover: clients of six kinds on one server, which check
 * every byte by its place in the stream while the server changes hands.
 *
 *   takeover-load ADDRESS PORT [-e N] [-p N -r RATE] [-w N [-i MS] [-b BYTES]] [-k N] [-c RATE] [-x RATE] [-t S] [-l]
 *
 *   -e N     echo: says 1 byte to 64 KiB, waits for the whole echo, a millisecond later says more
 *   -p N     paced: RATE messages of 64 bytes a second go round these connections, each at its time, whatever the
 *            echoes do; so a stall of the server is seen by every message that was due in it. Few are idle clients.
 *   -w N     slow: writes all it can and reads little, so that output always waits in the server; up to 8 KiB every MS
 *            milliseconds (8), and at most BYTES are to come back at a time (no limit)
 *   -k N     stuck: writes what `fill` says and reads nothing before `finish`
 *   -c RATE  short: so many a second connect, have one message echoed, close
 *   -x RATE  half-closing: so many a second connect, write 1 byte to 512 KiB, half-close, and read slowly to the end
 *   -t S     lost is who has not had a byte for so many seconds (5) that is due
 *   -l       lines for the service print, which answers nothing: paced ones say a piece of a line when it is due,
 *            short ones say a line and close, half-closing ones say 20 lines. See `line_text`.
 *
 * It connects what stays connected and prints `ready`. Then each line on stdin has one line for an answer:
 *
 *   report          counts so far, as KEY=VALUE
 *   messages N      the same, after N more messages
 *   pause, resume   nothing new is said or dialled, and the answer comes when nothing is due any more
 *   fill BYTES      each stuck one writes so many more; the answer comes when the server's host has them
 *   window FROM TO  DUE:LATENCY of each paced message that was due between these times of CLOCK_MONOTONIC, in ns:
 *                   both in ns, DUE counted from FROM
 *   finish          pause, read all, half-close all, expect the end of each stream; the report, and exit
 *
 * What is wrong with a connection is counted, and said on stderr; its load goes on without it.
 */
#define _GNU_SOURCE
#include "takeover-client.h"

#include <sys/ioctl.h>
#include <sys/prctl.h>

enum {
    EVENTS = 512,
    BURSTS = 2000, /* a second, in which paced messages are said: a wake-up for each would cost more than they do */
    OPENING = 500, /* connects at once at the start: no accept queue overflows from that */
    PASSING = 1000, /* short and half-closing ones at a time: a server that stalls makes the next ones late, and late
                       they are counted, but it does not use up the descriptors */
};
static const uint64_t AFTERMATH = SECOND / 4; /* what still comes after a fault tells which fault it is */

static unsigned wanted[KINDS]; /* connections of the lasting kinds, connects a second of the others */
static unsigned rate;          /* messages a second, of all paced ones together */
static unsigned interval = 8;  /* milliseconds between the reads of a slow one */
static uint64_t most;          /* bytes a slow one may be owed; 0: any number */
static unsigned patience = 5;  /* seconds without a byte that is due: lost */
static int finishing;

/* --- what the clock says ------------------------------------------------------------------------------ */

static uint64_t next_paced, next_short, next_half, next_tick, paced_since, paced_said;

static void restart_clock(void) {
    paced_since = next_paced = next_short = next_half = next_tick = now();
    paced_said = 0;
}

/* The times that have come of something that is to be so often a second. */
static int is_due(uint64_t *next, unsigned per_second, uint64_t time) {
    if (paused || !per_second || *next > time)
        return 0;
    *next += SECOND / per_second;
    return 1;
}

static void say_paced(uint64_t due) {
    static uint64_t turn;
    unsigned first = wanted[ECHO]; /* they were dialled in the order of the kinds, and keep their places */
    struct conn *conn = &conns[first + turn++ * 7919 % wanted[PACED]]; /* 7919 is prime: neighbours are far apart */
    if (conn->state != OPEN)
        return;
    if (lines) {
        say_line(conn, 0, 0);
        return;
    }
    uint64_t message = conn->target / MESSAGE;
    if (message - conn->got / MESSAGE >= DUE)
        fail("%d messages are due on connection %u", DUE, conn->id);
    conn->due[message % DUE] = due;
    say(conn, MESSAGE);
}

/* What a slow one may write, with what it has read. */
static void go_on(struct conn *conn) {
    uint64_t target = most ? conn->got + most : UINT64_MAX;
    if (conn->state == OPEN && target > conn->target)
        say(conn, target - conn->target);
}

/* A millisecond has passed. */
static void tick(struct conn *conn, uint64_t count, uint64_t time) {
    if (conn->state == OPEN && conn->kind == ECHO && conn->got == conn->target && !paused)
        say(conn, 1 + some(1 << some(17)));
    if (conn->state == OPEN && lines && !lasts(conn->kind))
        say_last_lines(conn, conn->kind == HALF ? LINES : 1);
    if (conn->state == OPEN && lines && finishing && lasts(conn->kind))
        say_last_lines(conn, 0);
    if (conn->state >= OPEN && reads_by_clock(conn) && (conn->kind != STUCK || finishing)) {
        if (paused)
            hear(conn, SIZE_MAX);
        else if ((count + conn->id) % (conn->kind == SLOW ? interval : 8) == 0) {
            hear(conn, 1 + some(2 * 4096));
            if (conn->kind == SLOW)
                go_on(conn);
        }
    }
    if (count % 64 || conn->state == FREE)
        return;
    uint64_t silence = time > conn->since ? time - conn->since : 0;
    int waits = conn->state == DIALLING || conn->state == ENDING || (conn->got < conn->sent && !lines);
    /* One that reads very little may be left to the pace of the kernel's window probes. */
    int patient = conn->kind == STUCK || (conn->kind == SLOW && interval > 8);
    if (conn->state == FAULTY && silence > AFTERMATH)
        diagnose(conn);
    else if (conn->state != FAULTY && waits && silence > patience * SECOND && (!patient || finishing))
        spoilt(conn, conn->state == DIALLING ? UNANSWERED : LOST, "nothing came for too long");
}

static void obey_clock(void) {
    static uint64_t ticks;
    uint64_t time = now(), due;
    while (due = next_paced, is_due(&next_paced, rate < BURSTS ? rate : BURSTS, time))
        for (; paced_said * SECOND < (due - paced_since) * rate; paced_said++)
            say_paced(due);
    while (due = next_short, passing < PASSING && is_due(&next_short, wanted[SHORT], time))
        dial(SHORT, due);
    while (passing < PASSING && is_due(&next_half, wanted[HALF], time))
        dial(HALF, 0);
    if (time < next_tick)
        return;
    next_tick = time + MILLISECOND;
    ticks++;
    /* The paced ones need the clock only now and then, and are many. */
    int all = ticks % 64 == 0 || finishing;
    for (unsigned i = 0; i < used; i++) {
        if (i == wanted[ECHO] && !all)
            i += wanted[PACED];
        if (i < used)
            tick(&conns[i], ticks, time);
    }
}

static uint64_t until_next(void) {
    uint64_t next = next_tick, time = now();
    if (!paused) {
        if (rate && next_paced < next)
            next = next_paced;
        if (wanted[SHORT] && next_short < next && passing < PASSING)
            next = next_short;
        if (wanted[HALF] && next_half < next && passing < PASSING)
            next = next_half;
    }
    return next > time ? next - time : 0;
}

/* --- the driver's words ------------------------------------------------------------------------------- */

static uint64_t messages_awaited;
static enum { NOTHING, MESSAGES, SETTLED, FILLED, FINISHED } awaited;

static void report(void) {
    for (unsigned i = 0; i < FAULTS; i++)
        printf("%s=%llu ", FAULT[i], (unsigned long long)faults[i]);
    printf("messages=%llu bytes=%llu connections=%llu open=%u worst_message_ms=%.3f worst_short_ms=%.3f\n",
           (unsigned long long)messages, (unsigned long long)bytes, (unsigned long long)connections, live,
           worst_message / (double)MILLISECOND, worst_short / (double)MILLISECOND);
    fflush(stdout);
    worst_message = worst_short = 0;
}

static void window(uint64_t from, uint64_t to) {
    uint64_t first = sampled > SAMPLES ? sampled - SAMPLES : 0;
    for (uint64_t i = first; i < sampled; i++)
        if (samples[i % SAMPLES].due >= from && samples[i % SAMPLES].due < to)
            printf("%llu:%llu ", (unsigned long long)(samples[i % SAMPLES].due - from),
                   (unsigned long long)samples[i % SAMPLES].latency);
    puts("");
    fflush(stdout);
}

static void pause_all(void) {
    paused = 1;
    for (unsigned i = 0; i < used; i++)
        if (conns[i].kind == SLOW)
            conns[i].target = conns[i].sent;
}

static void resume_all(void) {
    paused = 0;
    restart_clock();
    for (unsigned i = 0; i < used; i++)
        if (conns[i].kind == SLOW)
            go_on(&conns[i]);
}

static void obey(char *words) {
    unsigned long long a = 0, b = 0;
    awaited = NOTHING;
    if (!strcmp(words, "report")) {
        report();
    } else if (sscanf(words, "messages %llu", &a) == 1) {
        awaited = MESSAGES;
        messages_awaited = messages + a;
    } else if (!strcmp(words, "pause")) {
        pause_all();
        awaited = SETTLED;
    } else if (!strcmp(words, "resume")) {
        resume_all();
        report();
    } else if (sscanf(words, "fill %llu", &a) == 1) {
        for (unsigned i = 0; i < used; i++)
            if (conns[i].kind == STUCK && conns[i].state == OPEN)
                say(&conns[i], a);
        awaited = FILLED;
    } else if (sscanf(words, "window %llu %llu", &a, &b) == 2) {
        window(a, b);
    } else if (!strcmp(words, "finish")) {
        pause_all();
        finishing = 1;
        awaited = FINISHED;
    } else {
        fail("what does %s mean?", words);
    }
}

static void hear_driver(void) {
    static char words[256];
    static size_t size;
    ssize_t got = read(0, words + size, sizeof words - 1 - size);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        exit(1); /* without its driver nobody would end it */
    size += got;
    for (char *end; (end = memchr(words, '\n', size));) {
        *end = 0;
        obey(words);
        size -= end + 1 - words;
        memmove(words, end + 1, size);
    }
    if (size == sizeof words - 1)
        fail("too many words");
}

/* Whether nothing is due to any that lasts. */
static int is_settled(void) {
    for (unsigned i = 0; i < used; i++)
        if (conns[i].state != FREE && (conns[i].kind != STUCK || finishing) && !lines &&
            (conns[i].state == FAULTY || conns[i].got != conns[i].target))
            return 0;
    return passing == 0;
}

static int is_filled(void) {
    for (unsigned i = 0; i < used; i++)
        if (conns[i].kind == STUCK && conns[i].state != FREE) {
            int queued;
            if (conns[i].sent != conns[i].target || ioctl(conns[i].fd, TIOCOUTQ, &queued) < 0 || queued)
                return 0;
        }
    return 1;
}

static void answer(void) {
    int answered = (awaited == MESSAGES && messages >= messages_awaited) || (awaited == SETTLED && is_settled()) ||
                   (awaited == FILLED && is_filled());
    if (answered) {
        awaited = NOTHING;
        report();
    }
    if (awaited != FINISHED)
        return;
    if (live == 0) {
        report();
        exit(0);
    }
    if (!lines && is_settled())
        for (unsigned i = 0; i < used; i++)
            if (conns[i].state == OPEN)
                half_close(&conns[i]);
}

/* --- the loop ----------------------------------------------------------------------------------------- */

static void turn(void) {
    static struct epoll_event events[EVENTS];
    uint64_t wait = until_next();
    struct timespec timeout = {.tv_sec = wait / SECOND, .tv_nsec = wait % SECOND};
    int ready = epoll_pwait2(poller, events, EVENTS, &timeout, NULL);
    for (int i = 0; i < ready; i++)
        if (events[i].data.u32 == UINT32_MAX)
            hear_driver();
        else
            happened(&conns[events[i].data.u32], events[i].events);
    obey_clock();
    answer();
}

static void open_lasting(void) {
    paused = 1;
    restart_clock();
    for (enum kind kind = 0; kind < SHORT; kind++)
        for (unsigned i = 0; i < wanted[kind]; i++) {
            dial(kind, 0);
            while (used % OPENING == 0 && conns[used - 1].state == DIALLING)
                turn();
        }
    for (unsigned i = 0; i < used; i++)
        while (conns[i].state == DIALLING)
            turn();
    for (unsigned i = 0; i < FAULTS; i++)
        if (faults[i])
            fail("cannot connect all that should last");
}

static int usage(void) {
    fprintf(stderr, "usage: takeover-load ADDRESS PORT [-e N] [-p N -r RATE] [-w N [-i MS] [-b BYTES]] [-k N]\n"
                    "       [-c RATE] [-x RATE] [-l]\n");
    return 2;
}

int main(int count, char **words) {
    static const char LETTERS[] = "epwkcx";
    if (count < 3)
        return usage();
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(words[2]))};
    int known = inet_pton(AF_INET, words[1], &server.sin_addr) == 1 && server.sin_port;
    for (int option; (option = getopt(count - 2, words + 2, "e:p:r:w:i:b:k:c:x:t:l")) != -1;)
        if (option == 'l')
            lines = 1;
        else if (option == 'r')
            rate = atoi(optarg);
        else if (option == 'i')
            interval = atoi(optarg);
        else if (option == 't')
            patience = atoi(optarg);
        else if (option == 'b')
            most = strtoull(optarg, NULL, 10);
        else if (strchr(LETTERS, option))
            wanted[strchr(LETTERS, option) - LETTERS] = atoi(optarg);
        else
            return usage();
    /* No paced connection may come to have DUE messages due before its patience is over. */
    if (!known || !interval || !patience || (lines && wanted[ECHO] + wanted[SLOW] + wanted[STUCK]) || (rate && !wanted[PACED]) ||
        (!lines && rate * patience > wanted[PACED] * 25))
        return usage();

    room = raise_descriptors();
    prctl(PR_SET_TIMERSLACK, 1); /* a message is to be sent when it is due, not up to 50 us later */
    conns = calloc(room, sizeof *conns);
    vacant = calloc(room, sizeof *vacant);
    samples = calloc(SAMPLES, sizeof *samples);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event driver = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    if (!conns || !vacant || !samples || poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, 0, &driver) < 0)
        fail("cannot start: %s", strerror(errno));

    open_lasting();
    puts("ready");
    fflush(stdout);
    for (resume_all();;)
        turn();
}
