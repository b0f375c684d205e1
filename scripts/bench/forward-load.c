/*
 * The load of scripts/bench/forward, and the server behind the relay that is measured: one process is both, so that
 * what it costs is one core, without switching, and what was sent and what arrived is known in one place.
 *
 *   forward-load up    -c CONNECTIONS -T SECONDS            bulk, from the clients through the relay to the server
 *   forward-load down  -c CONNECTIONS -T SECONDS            bulk, the other way
 *   forward-load echo  -c CONNECTIONS -T SECONDS -s BYTES   a message there and back, then the next
 *   forward-load churn -c CONNECTIONS -T SECONDS -s BYTES   connect, a message there and back, close, again
 *
 * It prints `listening on 127.0.0.1:PORT`, where the relay is to go, and reads the relay's own port from stdin; then it
 * connects and prints `ready`. For each further line on stdin it runs the load once, until nothing is under way any
 * more, and prints one line of KEY=VALUE. Any fault, or no progress for 5 s, is one line on stderr and exit 1.
 *
 * It must be faster than the relay, or it measures itself. So it never sleeps under load, and in bulk it drops what
 * arrives in the kernel (MSG_TRUNC, tcp(7): no copy), but for one read in 64, whose bytes are compared. It does not send
 * without a copy (sendfile): pages of 4 KiB would make each relay's reads half as fast again.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include "load.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 1024, PATTERN = 1 << 20, CHUNK = 256 * 1024, DESTINATIONS = 16, LOOK_AT = 64, MOST = 1024 };
static const uint64_t PATIENCE = 5 * SECOND, PAUSE = 3000;

struct pair {
    int client, server;          /* -1: not there */
    uint64_t sent, got;          /* bulk: bytes of the whole connection, both a position in the pattern */
    uint64_t sent_at;
    uint32_t there, back, offset; /* the message: so much of it has come to the server, and back to the client */
};

static unsigned relay, connections = 1;
static uint32_t bytes = 64;
static uint64_t duration;
static struct pair pairs[MOST];
static unsigned char *pattern, heard[CHUNK];
static int listener, poller;

/* --- connections -------------------------------------------------------------------------------------- */

static void listen_somewhere(void) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof any;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&any, length) < 0 || listen(listener, 4096) < 0 ||
        getsockname(listener, (struct sockaddr *)&any, &length) < 0)
        fail("cannot listen: %s", strerror(errno));
    printf("listening on 127.0.0.1:%u\n", ntohs(any.sin_port));
    fflush(stdout);
}

/* Spread over several addresses, so that ports in TIME_WAIT last longer. connect() blocks, which on loopback is a matter
 * of microseconds; everything after it is MSG_DONTWAIT. */
static int dial(void) {
    static unsigned dialled;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(relay)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK + dialled++ % DESTINATIONS);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("cannot connect to the relay at %s:%u: %s", inet_ntoa(to.sin_addr), relay, strerror(errno));
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* What the relay has connected to the server, or -1. */
static int answer(void) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 && errno != EAGAIN && errno != ECONNABORTED)
        fail("accept: %s", strerror(errno));
    int on = 1;
    if (fd >= 0)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* A pair is open once its number has gone through. Some relays dial only when there are bytes to relay. */
static void open_all(void) {
    for (unsigned i = 0; i < connections; i++) {
        uint32_t number = i;
        pairs[i].client = dial();
        if (send(pairs[i].client, &number, sizeof number, MSG_NOSIGNAL) != sizeof number)
            fail("cannot send: %s", strerror(errno));
        uint64_t end = now() + PATIENCE;
        while ((pairs[i].server = answer()) < 0) {
            if (now() > end)
                fail("the relay did not connect to the server within 5 s");
            pause_for(PAUSE);
        }
        if (recv(pairs[i].server, &number, sizeof number, MSG_WAITALL) != sizeof number || number != i)
            fail("the relay did not relay 4 bytes");
    }
}

/* --- bulk --------------------------------------------------------------------------------------------- */

/* Whether it could send something. */
static int push(struct pair *pair, int from) {
    size_t at = pair->sent % PATTERN;
    ssize_t sent = send(from, pattern + at, CHUNK, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        fail("cannot send: %s", strerror(errno));
    pair->sent += sent > 0 ? sent : 0;
    return sent > 0;
}

/* Whether something came. */
static int pull(struct pair *pair, int to) {
    static unsigned reads;
    int look = ++reads % LOOK_AT == 0;
    ssize_t got = recv(to, heard, CHUNK, MSG_DONTWAIT | (look ? 0 : MSG_TRUNC));
    if (got == 0)
        fail("the relay closed a connection in use");
    if (got < 0 && errno != EAGAIN)
        fail("lost a connection: %s", strerror(errno));
    if (got < 0)
        return 0;
    if (look && memcmp(heard, pattern + pair->got % PATTERN, got) != 0)
        fail("what came through differs from what was sent");
    pair->got += got;
    return 1;
}

static void load_bulk(int up) {
    uint64_t started = now(), end = started + duration, moved_at = started, before = 0, after = 0;
    for (unsigned i = 0; i < connections; i++)
        before += pairs[i].got;
    for (int under_way = 1; under_way;) {
        int moved = 0, sending = now() < end;
        under_way = sending;
        for (unsigned i = 0; i < connections; i++) {
            struct pair *pair = &pairs[i];
            int from = up ? pair->client : pair->server, to = up ? pair->server : pair->client;
            if (sending)
                moved |= push(pair, from);
            while (pull(pair, to))
                moved = 1;
            under_way |= pair->got < pair->sent;
        }
        if (moved)
            moved_at = now();
        else if (now() > moved_at + PATIENCE)
            fail("nothing moved for 5 s");
        else
            pause_for(PAUSE);
    }
    for (unsigned i = 0; i < connections; i++)
        after += pairs[i].got;
    printf("done=%llu seconds=%.6f\n", (unsigned long long)(after - before), (now() - started) / (double)SECOND);
}

/* --- messages ----------------------------------------------------------------------------------------- */

static void send_all(int fd, const unsigned char *from, size_t length) {
    ssize_t sent = send(fd, from, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent != (ssize_t)length)
        fail("cannot send %zu bytes: %s", length, sent < 0 ? strerror(errno) : "only a part was taken");
}

/* Each message differs from the one before it and from those of the neighbours. */
static void say(struct pair *pair, uint64_t at) {
    pair->offset = (pair->offset + 1) % 4096;
    pair->there = pair->back = 0;
    pair->sent_at = at;
    send_all(pair->client, pattern + pair->offset, bytes);
}

/* So many bytes have come; -1 at the end of the stream. */
static ssize_t hear(int fd, struct pair *pair, uint32_t already) {
    ssize_t got = recv(fd, heard, CHUNK, MSG_DONTWAIT);
    if (got == 0)
        return -1;
    if (got < 0 && errno != EAGAIN)
        fail("lost a connection: %s", strerror(errno));
    if (got < 0)
        return 0;
    if (pair && (already + got > bytes || memcmp(heard, pattern + pair->offset + already, got) != 0))
        fail("a message differs from what was sent");
    return got;
}

static void load_echo(void) {
    uint64_t started = now(), end = started + duration, heard_at = started, sent = connections, done = 0;
    static struct epoll_event events[EVENTS];
    for (unsigned i = 0; i < connections; i++)
        say(&pairs[i], now());
    while (done < sent) {
        int ready = epoll_wait(poller, events, EVENTS, 0);
        if (ready <= 0 && now() > heard_at + PATIENCE)
            fail("no message for 5 s: %llu are due", (unsigned long long)(sent - done));
        if (ready <= 0)
            pause_for(PAUSE);
        for (int i = 0; i < ready; i++) {
            struct pair *pair = &pairs[events[i].data.u64 / 2];
            int at_server = events[i].data.u64 % 2;
            ssize_t got = hear(at_server ? pair->server : pair->client, pair, at_server ? pair->there : pair->back);
            if (got < 0)
                fail("the relay closed a connection in use");
            if (at_server) {
                if (got > 0)
                    send_all(pair->server, heard, got);
                pair->there += got;
                continue;
            }
            if ((pair->back += got) < bytes || !got)
                continue;
            heard_at = now();
            record(heard_at - pair->sent_at);
            done++;
            if (heard_at < end) {
                say(pair, heard_at);
                sent++;
            }
        }
    }
    printf("done=%llu seconds=%.6f p50_us=%.1f p99_us=%.1f\n", (unsigned long long)done,
           (now() - started) / (double)SECOND, percentile_us(0.50), percentile_us(0.99));
}

/* The server's connections are echoed to whoever they belong to, by epoll; the clients' form a ring, the oldest being
 * the next to end. The client closes first; how the relay passes that on is its own affair: FIN or reset. */
static int echo_what_came(void) {
    static struct epoll_event events[EVENTS];
    int ready = epoll_wait(poller, events, EVENTS, 0);
    for (int i = 0; i < ready; i++) {
        int fd = events[i].data.u64;
        if (fd == listener) {
            for (int one; (one = answer()) >= 0;) {
                struct epoll_event event = {.events = EPOLLIN, .data.u64 = one};
                epoll_ctl(poller, EPOLL_CTL_ADD, one, &event);
            }
            continue;
        }
        ssize_t got = recv(fd, heard, CHUNK, MSG_DONTWAIT);
        if (got > 0)
            send_all(fd, heard, got);
        else if (got == 0 || errno != EAGAIN)
            close(fd);
    }
    return ready > 0;
}

static void begin(struct pair *pair, uint64_t at) {
    pair->client = dial();
    say(pair, at);
}

static void load_churn(void) {
    uint64_t started = now(), end = started + duration, begun = 0, done = 0;
    for (; begun < connections; begun++)
        begin(&pairs[begun], now());
    while (done < begun) {
        struct pair *oldest = &pairs[done % connections];
        for (uint64_t limit = now() + PATIENCE; oldest->back < bytes;) {
            ssize_t got = hear(oldest->client, oldest, oldest->back);
            if (got < 0)
                fail("the relay closed a connection in use");
            oldest->back += got;
            if (!echo_what_came() && !got) {
                if (now() > limit)
                    fail("no message for 5 s");
                pause_for(PAUSE);
            }
        }
        close(oldest->client);
        uint64_t at = now();
        record(at - oldest->sent_at);
        done++;
        if (at < end) {
            begin(oldest, at);
            begun++;
        }
    }
    printf("done=%llu seconds=%.6f p50_us=%.1f p99_us=%.1f\n", (unsigned long long)done,
           (now() - started) / (double)SECOND, percentile_us(0.50), percentile_us(0.99));
    /* The ends of the last ones. */
    for (uint64_t quiet = now() + SECOND / 50; now() < quiet;)
        echo_what_came();
}

/* ------------------------------------------------------------------------------------------------------ */

static void watch(int fd, uint64_t data, uint32_t interest) {
    struct epoll_event event = {.events = interest, .data.u64 = data};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static int usage(void) {
    fprintf(stderr, "usage: forward-load up|down|echo|churn [-c CONNECTIONS] [-T SECONDS] [-s BYTES]\n");
    return 2;
}

int main(int count, char **words) {
    if (count < 2)
        return usage();
    const char *load = words[1];
    int is_up = !strcmp(load, "up"), is_bulk = is_up || !strcmp(load, "down");
    int is_echo = !strcmp(load, "echo"), is_churn = !strcmp(load, "churn");
    for (int option; (option = getopt(count - 1, words + 1, "c:s:T:")) != -1;)
        switch (option) {
        case 'c': connections = atoi(optarg); break;
        case 's': bytes = atoi(optarg); break;
        case 'T': duration = atof(optarg) * SECOND; break;
        default: return usage();
        }
    if (!(is_bulk || is_echo || is_churn) || !connections || connections > MOST || !bytes || bytes > CHUNK || !duration)
        return usage();

    raise_descriptors();
    pattern = malloc(2 * PATTERN); /* twice, so that any CHUNK from any position in the first is in one piece */
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!pattern || poller < 0)
        fail("cannot start: %s", strerror(errno));
    for (uint32_t i = 0; i < PATTERN; i++)
        pattern[i] = pattern[PATTERN + i] = rand() >> 8; /* always the same bytes: the generator is not seeded */

    listen_somewhere();
    if (scanf("%u", &relay) != 1)
        fail("no port of a relay on stdin");
    told_to_go();
    if (is_churn) {
        watch(listener, listener, EPOLLIN);
    } else {
        open_all();
        for (unsigned i = 0; is_echo && i < connections; i++) {
            watch(pairs[i].client, 2 * i, EPOLLIN | EPOLLET);
            watch(pairs[i].server, 2 * i + 1, EPOLLIN | EPOLLET);
        }
    }
    for (puts("ready"); fflush(stdout), told_to_go();) {
        memset(buckets, 0, sizeof buckets);
        if (is_bulk)
            load_bulk(is_up);
        else if (is_echo)
            load_echo();
        else
            load_churn();
    }
    return 0;
}
