/*
 * The load of scripts/bench/echo: it keeps an echo server busy from one core and checks every byte that comes back.
 *
 *   echo-load echo  PORT -c CONNECTIONS -s BYTES (-T SECONDS | -n MESSAGES)   ping-pong on open connections
 *   echo-load churn PORT -c CONNECTIONS -s BYTES (-T SECONDS | -n MESSAGES)   connect, echo, close, again
 *   echo-load idle  PORT -c CONNECTIONS -s BYTES                              one echo each, then silence
 *
 * It makes its connections and prints `ready`. For each line on stdin it then runs the load once, until no echo
 * is due any more, and prints one line of KEY=VALUE; so the driver can read the server's clock before and after,
 * and let two servers take turns. When stdin closes it looks whether all that it holds is still open and silent.
 * Any fault, or no progress for 5 s, is one line on stderr and exit 1.
 *
 * It must be faster than the server, or it measures itself. So it never sleeps under load: a server that has to
 * wake a sleeping core pays for it, more or less by chance. And finding nothing to do it stays away for a
 * few microseconds, rather than fight the server for the socket's lock.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include "load.h"

#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 1024, PATTERN = 256, DESTINATIONS = 16, OPENING = 1000 };
static const uint64_t PATIENCE = 5 * SECOND, PAUSE = 5000;

struct conn {
    int fd;
    uint32_t offset, got; /* the message is the pattern from `offset` on; so much of its echo has come */
    uint64_t sent_at;
};

static unsigned port, connections = 1;
static uint32_t bytes = 64;
static uint64_t duration, messages; /* nanoseconds; 0 is no limit of that kind */
static struct conn *conns;
static unsigned char *pattern, *echoed;

/* --- one connection ----------------------------------------------------------------------------------- */

/* Connections are spread over several addresses: a search for a free port is slow past half of the range, and
 * those of closed connections stay taken in TIME_WAIT. connect() blocks, which on loopback is a matter of
 * microseconds and saves an event; everything after it is MSG_DONTWAIT. */
static void dial(struct conn *conn) {
    static unsigned dialled;
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK + dialled++ % DESTINATIONS);
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (conn->fd < 0)
        fail("cannot open a socket: %s", strerror(errno));
    if (connect(conn->fd, (struct sockaddr *)&server, sizeof server) < 0)
        fail("cannot connect to %s:%u: %s", inet_ntoa(server.sin_addr), port, strerror(errno));
}

/* Each message differs from the one before it and from those of the neighbours. */
static void say(struct conn *conn, uint64_t at) {
    conn->offset = (conn->offset + 1) % PATTERN;
    conn->got = 0;
    conn->sent_at = at;
    ssize_t sent = send(conn->fd, pattern + conn->offset, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent != bytes)
        fail("cannot send %u bytes: %s", bytes, sent < 0 ? strerror(errno) : "only a part was taken");
}

/* Whether the whole echo has come. */
static int hear(struct conn *conn) {
    ssize_t got = recv(conn->fd, echoed, bytes - conn->got, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got <= 0)
        fail("lost a connection: %s", got < 0 ? strerror(errno) : "closed by the server");
    if (memcmp(echoed, pattern + conn->offset + conn->got, got) != 0)
        fail("an echo differs from what was sent");
    conn->got += got;
    return conn->got == bytes;
}

static void expect_silence(struct conn *conn) {
    ssize_t got = recv(conn->fd, echoed, bytes, MSG_DONTWAIT);
    if (got >= 0 || errno != EAGAIN)
        fail("after its echo: %s",
             got > 0 ? "bytes that nobody sent" : got == 0 ? "closed by the server" : strerror(errno));
}

static void hear_all_of(struct conn *conn) {
    for (uint64_t end = conn->sent_at + PATIENCE; !hear(conn); pause_for(PAUSE))
        if (now() > end)
            fail("no echo within 5 s");
}

/* Opens all, in groups that no accept queue overflows from, each connection with one echo. */
static void open_all(void) {
    for (unsigned first = 0; first < connections; first += OPENING) {
        unsigned end = first + OPENING < connections ? first + OPENING : connections;
        for (unsigned i = first; i < end; i++) {
            dial(&conns[i]);
            conns[i].offset = i;
            say(&conns[i], now());
        }
        for (unsigned i = first; i < end; i++)
            hear_all_of(&conns[i]);
    }
}

/* --- the loads ---------------------------------------------------------------------------------------- */

static void report(uint64_t done, uint64_t started) {
    printf("done=%llu seconds=%.6f p50_us=%.1f p99_us=%.1f\n", (unsigned long long)done,
           (now() - started) / (double)SECOND, percentile_us(0.50), percentile_us(0.99));
}

static void load_echo(int poller) {
    uint64_t started = now(), end = duration ? started + duration : UINT64_MAX, heard_at = started;
    uint64_t limit = messages ? messages : UINT64_MAX, sent = 0, done = 0;
    static struct epoll_event events[EVENTS];

    for (unsigned i = 0; i < connections && sent < limit; i++, sent++)
        say(&conns[i], now());
    while (done < sent) {
        int ready = epoll_wait(poller, events, EVENTS, 0);
        if (ready <= 0) {
            if (now() > heard_at + PATIENCE)
                fail("no echo for 5 s: %llu are due", (unsigned long long)(sent - done));
            pause_for(PAUSE);
        }
        for (int i = 0; i < ready; i++) {
            struct conn *conn = events[i].data.ptr;
            if (!hear(conn))
                continue;
            heard_at = now();
            record(heard_at - conn->sent_at);
            done++;
            if (sent < limit && heard_at < end) {
                say(conn, heard_at);
                sent++;
            }
        }
    }
    report(done, started);
}

/* The connections in flight form a ring: the server takes them in order, so the oldest is the next to end and
 * none needs to be registered anywhere. The client closes first: TIME_WAIT is its own. */
static void load_churn(void) {
    uint64_t started = now(), end = duration ? started + duration : UINT64_MAX;
    uint64_t limit = messages ? messages : UINT64_MAX, begun = 0, done = 0;

    for (uint64_t at; begun < connections && begun < limit; begun++) {
        at = now();
        dial(&conns[begun]);
        say(&conns[begun], at);
    }
    for (struct conn *oldest; done < begun; done++) {
        oldest = &conns[done % connections];
        hear_all_of(oldest);
        close(oldest->fd);
        uint64_t at = now();
        record(at - oldest->sent_at);
        if (begun < limit && at < end) {
            dial(oldest);
            say(oldest, at);
            begun++;
        }
    }
    report(done, started);
}

static int usage(void) {
    fprintf(stderr, "usage: echo-load echo|churn|idle PORT [-c CONNECTIONS] [-s BYTES] [-T SECONDS] [-n MESSAGES]\n");
    return 2;
}

int main(int count, char **words) {
    if (count < 3)
        return usage();
    const char *load = words[1];
    int is_echo = !strcmp(load, "echo"), is_churn = !strcmp(load, "churn"), is_idle = !strcmp(load, "idle");
    port = atoi(words[2]);
    for (int option; (option = getopt(count - 2, words + 2, "c:s:T:n:")) != -1;)
        switch (option) {
        case 'c': connections = atoi(optarg); break;
        case 's': bytes = atoi(optarg); break;
        case 'T': duration = atof(optarg) * SECOND; break;
        case 'n': messages = atoll(optarg); break;
        default: return usage();
        }
    if (!(is_echo || is_churn || is_idle) || !port || !connections || !bytes || (!is_idle && !duration && !messages))
        return usage();

    raise_descriptors();
    conns = calloc(connections, sizeof *conns);
    pattern = malloc(PATTERN + bytes);
    echoed = malloc(bytes);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (!conns || !pattern || !echoed || poller < 0)
        fail("cannot start: %s", strerror(errno));
    for (uint32_t i = 0; i < PATTERN + bytes; i++)
        pattern[i] = rand() >> 8; /* always the same bytes: the generator is not seeded */

    if (is_churn) {
        struct conn first = {0}; /* the first connection of a server's life costs more than the others */
        dial(&first);
        say(&first, now());
        hear_all_of(&first);
        close(first.fd);
    } else {
        open_all();
    }
    for (unsigned i = 0; is_echo && i < connections; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = &conns[i]};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, conns[i].fd, &event) < 0)
            fail("epoll_ctl: %s", strerror(errno));
    }
    for (puts("ready"); fflush(stdout), told_to_go();) {
        memset(buckets, 0, sizeof buckets);
        if (is_echo)
            load_echo(poller);
        else if (is_churn)
            load_churn();
        else
            printf("open=%u\n", connections);
    }
    for (unsigned i = 0; !is_churn && i < connections; i++)
        expect_silence(&conns[i]);
    return 0;
}
