/*
 * The load of scripts/bench/hub: one client says lines at a fixed rate, all others listen and check what they hear.
 *
 *   hub-load PORT -c LISTENERS [-g GROUP] [-k STUCK] -r LINES -s BYTES -T SECONDS
 *
 * LINES a second of BYTES each go to a broker for SECONDS. STUCK more listeners never read. They connect GROUP at a time.
 * Prints `ready` once every listener has heard something; for a line on stdin it then runs the load, waits until nothing
 * is due any more, or nothing has come for 3 s, and prints one line of KEY=VALUE. A line's latency counts from when it
 * was due, whether the broker let it be said then or not.
 *
 * Each line begins with its number, so a listener knows which ones it was not given; what is no whole line is torn.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include "load.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 512, DESTINATIONS = 8, DIGITS = 10, READ = 256 * 1024 };
static const uint64_t PATIENCE = 3 * SECOND, MILLISECOND = 1000000;

struct conn {
    int fd;
    int open;
    uint64_t at; /* how much of the stream it has heard: bytes, those it was not given included */
    uint64_t heard, skipped, torn; /* lines */
    unsigned char partial[4096]; /* after a gap: the beginning of a line */
    unsigned held;
};

static unsigned port, listeners = 100, stuck, group = 500;
static double rate = 500, seconds = 10;
static unsigned bytes = 64;
static struct conn *conns;
static int speaker, poller;
static unsigned char *stream; /* everything that is said, one line after another */
static uint64_t lines, said, *due, lost; /* `said`: bytes the broker took */
static unsigned char *buffer;

static int dial(unsigned destination) {
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK + destination % DESTINATIONS);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0)
        fail("cannot open a socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&server, sizeof server) < 0)
        fail("cannot connect to %s:%u: %s", inet_ntoa(server.sin_addr), port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* Every listener hears a line before the load begins: a broker does not say when it has let somebody in. */
static void greet_all(void) {
    static const char hello[] = "hello\n";
    char heard[4096];
    unsigned missing = listeners;
    unsigned char *greeted = calloc(listeners, 1);
    for (uint64_t end = now() + 20 * SECOND; missing; usleep(50000)) {
        if (send(speaker, hello, sizeof hello - 1, MSG_NOSIGNAL) < 0)
            fail("cannot speak: %s", strerror(errno));
        for (unsigned i = 0; i < listeners; i++)
            if (!greeted[i] && recv(conns[i].fd, heard, sizeof heard, MSG_DONTWAIT) > 0)
                greeted[i] = 1, missing--;
        if (now() > end)
            fail("%u of %u listeners have heard nothing for 20 s", missing, listeners);
    }
    free(greeted);
    /* What was said for others comes to all. */
    for (uint64_t end = now() + SECOND / 2; now() < end; usleep(20000))
        for (unsigned i = 0; i < listeners; i++)
            while (recv(conns[i].fd, heard, sizeof heard, MSG_DONTWAIT) > 0)
                ;
}

/* A whole line after a gap: its number says where the listener is. */
static void found(struct conn *conn, const unsigned char *line) {
    uint64_t number = 0;
    for (int i = 0; i < DIGITS; i++)
        number = number * 10 + (line[i] - '0');
    if (number >= lines || number * bytes < conn->at || memcmp(stream + number * bytes, line, bytes) != 0) {
        conn->torn++;
        return;
    }
    conn->skipped += number - conn->at / bytes;
    conn->at = (number + 1) * bytes;
    conn->heard++;
}

static void hear(struct conn *conn, const unsigned char *got, size_t count, uint64_t at) {
    while (count) {
        size_t same = 0, most = lines * bytes - conn->at;
        if (!conn->held) {
            most = count < most ? count : most;
            if (memcmp(stream + conn->at, got, most) == 0)
                same = most;
        }
        if (same) {
            uint64_t first = conn->at / bytes, end = (conn->at += same) / bytes;
            conn->heard += end - first;
            for (; first < end; first++)
                record(at > due[first] ? at - due[first] : 0);
            got += same, count -= same;
            continue;
        }
        if (!conn->held && conn->at % bytes) { /* in the middle of a line, which does not go on as it should */
            uint64_t rest = bytes - conn->at % bytes;
            same = rest < count ? rest : count;
            if (memcmp(stream + conn->at, got, same) != 0)
                conn->torn++;
            conn->at += same, got += same, count -= same;
            if (conn->at % bytes == 0)
                conn->heard++;
            continue;
        }
        size_t take = bytes - conn->held < count ? bytes - conn->held : count;
        memcpy(conn->partial + conn->held, got, take);
        conn->held += take, got += take, count -= take;
        if (conn->held == bytes) {
            found(conn, conn->partial);
            conn->held = 0;
        }
    }
}

/* Says what is due by now; answers when the next line is. */
static uint64_t speak(uint64_t started, uint64_t at) {
    uint64_t due_lines = (at - started) / (double)SECOND * rate + 1;
    if (due_lines > lines)
        due_lines = lines;
    while (said < due_lines * bytes) {
        ssize_t sent = send(speaker, stream + said, due_lines * bytes - said, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            return at + MILLISECOND;
        if (sent < 0)
            fail("cannot speak: %s", strerror(errno));
        said += sent;
    }
    return due_lines < lines ? due[due_lines] : UINT64_MAX;
}

static void run(void) {
    static struct epoll_event events[EVENTS];
    uint64_t started = now(), last = started, idle = 0, next = started;
    for (uint64_t i = 0; i < lines; i++)
        due[i] = started + i * SECOND / rate;
    for (uint64_t left = listeners; left && now() < last + PATIENCE;) {
        uint64_t at = now();
        if (next <= at)
            next = speak(started, at);
        uint64_t wait = next == UINT64_MAX ? 100 : next > at ? (next - at) / MILLISECOND : 0;
        uint64_t before = now();
        int ready = epoll_wait(poller, events, EVENTS, wait > 100 ? 100 : wait);
        at = now();
        idle += at - before;
        for (int i = 0; i < ready; i++) {
            struct conn *conn = events[i].data.ptr;
            uint64_t was = conn->at;
            for (ssize_t got; conn->open && (got = recv(conn->fd, buffer, READ, MSG_DONTWAIT)) >= 0;) {
                if (got == 0) {
                    conn->open = 0, lost++, left--;
                    close(conn->fd);
                    break;
                }
                hear(conn, buffer, got, at);
                if (got < READ)
                    break;
            }
            if (conn->at != was)
                last = at;
            if (conn->open && was < lines * bytes && conn->at == lines * bytes)
                left--;
        }
        if (next != UINT64_MAX)
            last = at; /* more is to be said */
    }
    uint64_t heard = 0, skipped = 0, torn = 0, whole = 0, elapsed = now() - started;
    for (unsigned i = 0; i < listeners; i++) {
        heard += conns[i].heard;
        torn += conns[i].torn;
        skipped += lines - conns[i].heard;
        whole += conns[i].heard == lines;
    }
    printf("listeners=%u stuck=%u lines=%llu said=%llu heard=%llu missed=%llu torn=%llu whole=%llu lost=%llu "
           "seconds=%.3f p50_ms=%.2f p99_ms=%.2f max_ms=%.2f idle=%.3f\n",
           listeners, stuck, (unsigned long long)lines, (unsigned long long)(said / bytes), (unsigned long long)heard,
           (unsigned long long)skipped, (unsigned long long)torn, (unsigned long long)whole, (unsigned long long)lost,
           elapsed / 1e9, percentile_us(0.50) / 1e3, percentile_us(0.99) / 1e3, percentile_us(1 - 1e-12) / 1e3, idle / (double)elapsed);
}

static int usage(void) {
    fprintf(stderr, "usage: hub-load PORT [-c LISTENERS] [-g GROUP] [-k STUCK] [-r LINES] [-s BYTES] [-T SECONDS]\n");
    return 2;
}

int main(int count, char **words) {
    if (count < 2)
        return usage();
    port = atoi(words[1]);
    for (int option; (option = getopt(count - 1, words + 1, "c:g:k:r:s:T:")) != -1;)
        switch (option) {
        case 'c': listeners = atoi(optarg); break;
        case 'g': group = atoi(optarg); break;
        case 'k': stuck = atoi(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 's': bytes = atoi(optarg); break;
        case 'T': seconds = atof(optarg); break;
        default: return usage();
        }
    if (!port || !listeners || !group || rate <= 0 || bytes <= DIGITS || bytes > 4096 || seconds <= 0)
        return usage();
    if (raise_descriptors() < listeners + stuck + 16)
        fail("%u listeners are more than the descriptor limit allows", listeners + stuck);

    lines = rate * seconds;
    stream = malloc(lines * bytes + 1);
    due = calloc(lines, sizeof *due);
    conns = calloc(listeners + stuck, sizeof *conns);
    buffer = malloc(READ);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!stream || !due || !conns || !buffer || poller < 0)
        fail("cannot start: %s", strerror(errno));
    for (uint64_t i = 0; i < lines; i++) {
        unsigned char *line = stream + i * bytes;
        char number[24];
        snprintf(number, sizeof number, "%0*llu", DIGITS, (unsigned long long)i);
        memcpy(line, number, DIGITS);
        for (unsigned at = DIGITS; at < bytes - 1; at++)
            line[at] = 'a' + (i + at) % 26;
        line[bytes - 1] = '\n';
    }
    speaker = dial(0);
    for (unsigned i = 0; i < listeners + stuck; i++) {
        conns[i].fd = dial(i);
        conns[i].open = 1;
        if (i >= listeners) {
            int least = 1;
            setsockopt(conns[i].fd, SOL_SOCKET, SO_RCVBUF, &least, sizeof least);
        }
        if (i % group == group - 1)
            usleep(group < 40 ? 4000 : 20000); /* no accept queue overflows */
    }
    greet_all();
    for (unsigned i = 0; i < listeners; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &conns[i]};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, conns[i].fd, &event) < 0)
            fail("epoll_ctl: %s", strerror(errno));
    }
    puts("ready");
    fflush(stdout);
    if (getchar() != EOF)
        run();
    return 0;
}
