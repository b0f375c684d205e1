/*
 * One client of takeover-load: how it connects, what it says and when it says more, and what it makes of the echo.
 * When a time has come for something is not decided here.
 */
#include "load.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "takeover-stream.h"

static const uint64_t MILLISECOND = 1000000;

enum {
    SOURCES = 16, /* addresses to connect from: the search for a free port is slow in a well-filled range */
    MESSAGE = 64, /* bytes of a paced or short one */
    DUE = 32, /* paced messages that may be due on one connection */
    SAMPLES = 1 << 20,
    LINES = 20,
    TAIL = 256 * 1024,
};

enum kind { ECHO, PACED, SLOW, STUCK, SHORT, HALF, KINDS };
static const char *const KIND[] = {"echo", "paced", "slow", "stuck", "short", "half-closing"};

enum state {
    FREE,
    DIALLING,
    OPEN,
    ENDING, /* half-closed by us; the end of the stream is due */
    FAULTY, /* a byte was wrong: what follows is gathered in `tail` */
};

struct conn {
    int fd;
    enum kind kind;
    enum state state;
    uint32_t id;
    uint64_t target, sent, got; /* bytes to be sent, sent, and echoed */
    uint64_t since;             /* the last progress, or when something became due after all had come */
    uint64_t begun;             /* when a short one was due */
    uint64_t *due;              /* of a paced one: when each of its last messages was due */
    uint32_t line, at;          /* with -l: the line it is saying, and how far it is */
    int last;                   /* with -l: that line is its last */
    unsigned char *tail;
    size_t tail_size;
};

static struct sockaddr_in server;
static int lines;  /* it is the service print */
static int paused; /* nothing new is to be said */
static int poller;

static struct conn *conns;
static unsigned room, used, live, passing; /* `passing`: short and half-closing ones that are open */
static unsigned *vacant, vacancies;
static uint32_t last_id;
static uint64_t messages, connections, bytes, faults[FAULTS], worst_message, worst_short;

static struct { uint64_t due, latency; } *samples;
static uint64_t sampled;

/* --- small things ------------------------------------------------------------------------------------- */

static uint64_t some(uint64_t below) {
    static uint64_t state = 88172645463325252; /* always the same choices */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

/* --- one connection ----------------------------------------------------------------------------------- */

static int lasts(enum kind kind) {
    return kind < SHORT;
}

/* Reads little at a time, when the clock says so, and not when bytes come. */
static int reads_by_clock(const struct conn *conn) {
    return conn->kind == SLOW || conn->kind == STUCK || (conn->kind == HALF && !lines);
}

static void forget(struct conn *conn) {
    close(conn->fd);
    free(conn->tail);
    free(conn->due);
    conn->tail = NULL;
    conn->due = NULL;
    conn->state = FREE;
    live--;
    if (!lasts(conn->kind))
        vacant[vacancies++] = conn - conns, passing--;
}

static void __attribute__((format(printf, 3, 4))) spoilt(struct conn *conn, enum fault fault, const char *format, ...) {
    if (faults[fault]++ < 10) {
        char why[200];
        va_list words;
        va_start(words, format);
        vsnprintf(why, sizeof why, format, words);
        va_end(words);
        fprintf(stderr, "takeover-load: %s: connection %u (%s), %llu bytes sent, %llu back: %s\n", FAULT[fault],
                conn->id, KIND[conn->kind], (unsigned long long)conn->sent, (unsigned long long)conn->got, why);
    }
    forget(conn);
}

static void diagnose(struct conn *conn) {
    char why[100];
    enum fault fault = diagnosis(conn->id, conn->got, conn->sent, last_id, conn->tail, conn->tail_size, why);
    spoilt(conn, fault, "%s", why);
}

static void failed(struct conn *conn, int error) {
    if (conn->state == FAULTY)
        diagnose(conn);
    else
        spoilt(conn, error == ECONNREFUSED ? REFUSED : RESET, "%s", strerror(error));
}

static void set(int fd, int level, int option, int value) {
    if (setsockopt(fd, level, option, &value, sizeof value) < 0)
        fail("setsockopt: %s", strerror(errno));
}

static struct conn *dial(enum kind kind, uint64_t begun) {
    struct conn *conn = &conns[vacancies ? vacant[--vacancies] : used < room ? used++ : (fail("too many open"), 0)];
    *conn = (struct conn){.kind = kind, .state = DIALLING, .id = ++last_id, .since = now(), .begun = begun};
    live++;
    passing += !lasts(kind);
    connections++;
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0)
        fail("cannot open a socket: %s", strerror(errno));
    if (reads_by_clock(conn)) { /* with small buffers and segments here, those at the server's end are small too */
        set(conn->fd, SOL_SOCKET, SO_RCVBUF, 8192);
        set(conn->fd, IPPROTO_TCP, TCP_MAXSEG, 1024);
    }
    if (kind == PACED && !(conn->due = calloc(DUE, sizeof *conn->due)))
        fail("out of memory");
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + conn->id % SOURCES);
    set(conn->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.u32 = conn - conns};
    event.events |= reads_by_clock(conn) ? 0 : EPOLLIN;
    if (bind(conn->fd, (struct sockaddr *)&source, sizeof source) < 0 ||
        epoll_ctl(poller, EPOLL_CTL_ADD, conn->fd, &event) < 0)
        fail("cannot use a socket: %s", strerror(errno));
    if (connect(conn->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)
        failed(conn, errno);
    return conn;
}

static void half_close(struct conn *conn) {
    conn->state = ENDING;
    conn->since = now();
    if (shutdown(conn->fd, SHUT_WR) < 0)
        failed(conn, errno);
}

/* Sends what is to be sent, as far as the socket takes it. */
static void pump(struct conn *conn) {
    while (conn->sent < conn->target) {
        size_t size = conn->target - conn->sent < CHUNK ? conn->target - conn->sent : CHUNK;
        ssize_t taken = send(conn->fd, stream(conn->id, conn->sent, size), size, MSG_NOSIGNAL);
        if (taken < 0 && errno == EAGAIN)
            return;
        if (taken < 0)
            return failed(conn, errno);
        if (conn->got == conn->sent)
            conn->since = now();
        conn->sent += taken;
        bytes += taken;
    }
    if (conn->kind == HALF && conn->state == OPEN)
        half_close(conn);
}

static void say(struct conn *conn, uint64_t size) {
    conn->target += size;
    if (conn->state == OPEN)
        pump(conn);
}

/* Says the current line: the rest of it, or only a piece. False when the socket takes no more. */
static int say_line(struct conn *conn, int whole, int is_last) {
    char text[200];
    if (conn->at == 0)
        conn->last = is_last;
    int size = line_text(text, conn->id, conn->line, conn->last) - conn->at;
    ssize_t taken = send(conn->fd, text + conn->at, whole ? size : 1 + (int)some(size), MSG_NOSIGNAL);
    if (taken < 0) {
        if (errno != EAGAIN)
            failed(conn, errno);
        return 0;
    }
    conn->at += taken;
    bytes += taken;
    if (taken == size)
        conn->line++, conn->at = 0, messages++;
    return 1;
}

/* All lines to the last, and then the end, as far as the socket takes it. */
static void say_last_lines(struct conn *conn, uint32_t count) {
    while (!(conn->last && conn->at == 0 && conn->line))
        if (!say_line(conn, 1, conn->line + 1 >= count))
            return;
    if (conn->kind == SHORT)
        forget(conn); /* nothing is unread here, so it ends by FIN, and the server has the line */
    else
        half_close(conn);
}

static void take_sample(struct conn *conn, uint64_t message) {
    uint64_t due = conn->due[message % DUE], latency = now() - due;
    samples[sampled % SAMPLES].due = due;
    samples[sampled++ % SAMPLES].latency = latency;
    messages++;
    if (latency > worst_message)
        worst_message = latency;
}

/* New bytes are as they should be. */
static void heard(struct conn *conn, size_t size) {
    uint64_t before = conn->got;
    conn->got += size;
    conn->since = now();
    if (conn->kind == PACED)
        for (uint64_t message = before / MESSAGE; message < conn->got / MESSAGE; message++)
            take_sample(conn, message);
    else if (conn->kind == ECHO)
        messages += conn->got == conn->target;
    else if (conn->kind == SHORT && conn->got == conn->target) {
        if (conn->since - conn->begun > worst_short)
            worst_short = conn->since - conn->begun;
        messages++;
        forget(conn);
    }
}

static void ended(struct conn *conn) {
    if (conn->state == FAULTY)
        return diagnose(conn);
    if (conn->state != ENDING || conn->got != conn->sent)
        return spoilt(conn, DROPPED, "ended by the server");
    messages += conn->kind == HALF && !lines;
    forget(conn);
}

static void suspect(struct conn *conn, const unsigned char *from, size_t size) {
    if (!conn->tail && !(conn->tail = malloc(TAIL)))
        fail("out of memory");
    size = size < TAIL - conn->tail_size ? size : TAIL - conn->tail_size;
    memcpy(conn->tail + conn->tail_size, from, size);
    conn->tail_size += size;
    if (conn->state != FAULTY) {
        int open = conn->state == OPEN;
        conn->state = FAULTY;
        conn->since = now();
        if (open && conn->kind != SLOW) /* so that some words follow, however little was wrong */
            conn->target += MESSAGE, pump(conn);
    } else if (conn->tail_size == TAIL) {
        diagnose(conn);
    }
}

/* Reads at most `most` bytes, and checks them. */
static void hear(struct conn *conn, size_t most) {
    static unsigned char buffer[CHUNK];
    while (conn->state != FREE && most) {
        size_t size = most < CHUNK ? most : CHUNK;
        ssize_t got = recv(conn->fd, buffer, size, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got < 0)
            return failed(conn, errno);
        if (got == 0)
            return ended(conn);
        most -= got;
        size_t right = 0;
        if (conn->state != FAULTY) {
            right = conn->sent - conn->got < (uint64_t)got ? conn->sent - conn->got : (uint64_t)got;
            const unsigned char *expected = stream(conn->id, conn->got, right);
            if (memcmp(buffer, expected, right) != 0)
                for (right = 0; buffer[right] == expected[right];)
                    right++;
            if (right)
                heard(conn, right);
        }
        if (right < (size_t)got && conn->state != FREE)
            suspect(conn, buffer + right, got - right);
    }
}

static void connected(struct conn *conn) {
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error)
        return failed(conn, error);
    conn->state = OPEN;
    if (lines && !lasts(conn->kind))
        say_last_lines(conn, conn->kind == HALF ? LINES : 1);
    else if (conn->kind == SHORT)
        say(conn, MESSAGE);
    else if (conn->kind == HALF)
        say(conn, 1 + some(1 << (10 + some(10))));
}

static void happened(struct conn *conn, uint32_t events) {
    if (conn->state == FREE)
        return; /* it ended earlier in this batch */
    if (conn->state == DIALLING)
        connected(conn);
    else if (conn->state == OPEN && events & EPOLLOUT && !lines)
        pump(conn);
    if (conn->state != FREE && (!reads_by_clock(conn) || events & (EPOLLERR | EPOLLHUP)))
        hear(conn, SIZE_MAX);
}
