/*
 * The load of scripts/bench/tls, and the server behind the relay that is measured: clients that speak TLS, a server that
 * does not, in one process, so that all of it is one core.
 *
 *   tls-load handshake -c CONNECTIONS -T SECONDS            connect, a full handshake, a byte there and back, close, again
 *   tls-load resume    -c CONNECTIONS -T SECONDS            the same, with the ticket of a session before
 *   tls-load echo      -c CONNECTIONS -T SECONDS -s BYTES   a message there and back, then the next
 *   tls-load up        -c CONNECTIONS -T SECONDS            bulk, from the clients through the relay to the server
 *   tls-load down      -c CONNECTIONS -T SECONDS            bulk, the other way
 *
 * -2 is for TLS 1.2. All ask for AES-128-GCM and X25519 first, so that each relay does the same work; none looks whose the
 * certificate is. It prints `listening on 127.0.0.1:PORT`, where the relay is to go, and reads the relay's own port from
 * stdin; then it connects and prints `ready`. For each further line on stdin it runs the load once, until nothing is
 * under way any more, and prints one line of KEY=VALUE. Any fault, or no progress for 5 s, is one line on stderr and
 * exit 1.
 *
 * Each connection has a thread at either end, which blocks: what that costs is this core's, not the relay's.
 */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024, DESTINATIONS = 16, MOST = 1024, PATIENCE = 5 };
/* What the first byte of a chunk says of those behind it. */
enum { MORE = 'm', LAST = 'l' };

struct client {
    pthread_t thread;
    SSL *tls;             /* of a connection that stays */
    SSL_SESSION *session; /* to go on with */
    uint64_t done;
};

static unsigned relay, connections = 1;
static int bytes = 64, handshaking, resuming, echoing, up;
static uint64_t duration, deadline;
static struct client clients[MOST];
static unsigned char pattern[CHUNK];
static SSL_CTX *context;
static int listener;

static void patient(int fd) {
    int on = 1;
    struct timeval limit = {.tv_sec = PATIENCE};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static pthread_t start(void *(*work)(void *), void *with) {
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    int error = pthread_create(&thread, &attributes, work, with);
    if (error)
        fail("no thread: %s", strerror(error));
    return thread;
}

/* --- the server --------------------------------------------------------------------------------------- */

static void send_all(int fd, const unsigned char *from, size_t length) {
    for (ssize_t sent; length; from += sent, length -= sent)
        if ((sent = send(fd, from, length, MSG_NOSIGNAL)) < 0)
            fail("the server cannot send: %s", strerror(errno));
}

/* Whether a whole chunk has come, and not the end of the stream. */
static int recv_all(int fd, unsigned char *to, size_t length) {
    ssize_t got = 0;
    for (size_t have = 0; have < length; have += got)
        if ((got = recv(fd, to + have, length - have, MSG_WAITALL)) <= 0)
            return 0;
    return 1;
}

/* A slice of bulk begins with the client's byte, and ends with the last chunk: down, or up and a byte for it. */
static void *serve(void *connection) {
    int fd = (int)(intptr_t)connection;
    unsigned char heard[CHUNK], said[CHUNK];
    memcpy(said, pattern, CHUNK);
    struct timeval none = {0}; /* it waits for the next slice as long as that takes */
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    for (ssize_t got; (got = recv(fd, heard, handshaking || echoing ? CHUNK : 1, 0)) > 0;) {
        if (handshaking || echoing) {
            send_all(fd, heard, got);
            continue;
        }
        for (int last = 0; !last;) {
            if (up) {
                if (!recv_all(fd, heard, CHUNK))
                    fail("the relay closed a connection in use");
                if (memcmp(heard + 1, pattern + 1, CHUNK - 1) != 0)
                    fail("what came through differs from what was sent");
                last = heard[0] == LAST;
            } else {
                last = now() >= deadline;
                said[0] = last ? LAST : MORE;
                send_all(fd, said, CHUNK);
            }
        }
        if (up)
            send_all(fd, heard, 1);
    }
    close(fd);
    return NULL;
}

static void *accept_all(void *nothing) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0 || errno == ECONNABORTED;)
        if (fd >= 0) {
            patient(fd);
            pthread_detach(start(serve, (void *)(intptr_t)fd));
        }
    fail("accept: %s", strerror(errno));
    return nothing;
}

static void listen_somewhere(void) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof any;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&any, length) < 0 || listen(listener, 4096) < 0 ||
        getsockname(listener, (struct sockaddr *)&any, &length) < 0)
        fail("cannot listen: %s", strerror(errno));
    printf("listening on 127.0.0.1:%u\n", ntohs(any.sin_port));
    fflush(stdout);
}

/* --- the clients -------------------------------------------------------------------------------------- */

static void __attribute__((noreturn)) broken(const char *what) {
    unsigned long error = ERR_get_error();
    fail("%s: %s", what, error ? ERR_error_string(error, NULL) : strerror(errno));
}

/* Spread over several addresses, so that ports in TIME_WAIT last longer. */
static SSL *dial(struct client *client) {
    static _Atomic unsigned dialled;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(relay)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK + dialled++ % DESTINATIONS);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("cannot connect to the relay at %s:%u: %s", inet_ntoa(to.sin_addr), relay, strerror(errno));
    patient(fd);
    SSL *tls = SSL_new(context);
    if (!tls || !SSL_set_fd(tls, fd) || !SSL_set_app_data(tls, client))
        broken("no session");
    if (client->session && !SSL_set_session(tls, client->session))
        broken("the session before is no use");
    if (SSL_connect(tls) != 1)
        broken("no handshake");
    if (client->session && !SSL_session_reused(tls))
        fail("the relay did not go on with a session");
    return tls;
}

static void hang_up(SSL *tls) {
    int fd = SSL_get_fd(tls);
    SSL_shutdown(tls);
    SSL_free(tls);
    close(fd);
}

static void say(SSL *tls, const void *from, int length) {
    if (SSL_write(tls, from, length) != length)
        broken("cannot send");
}

static void hear(SSL *tls, unsigned char *to, int length) {
    for (int got, have = 0; have < length; have += got)
        if ((got = SSL_read(tls, to + have, length - have)) <= 0)
            broken("the relay closed a connection in use");
}

static void there_and_back(SSL *tls, int length) {
    unsigned char heard[CHUNK];
    say(tls, pattern, length);
    hear(tls, heard, length);
    if (memcmp(heard, pattern, length) != 0)
        fail("a message differs from what was sent");
}

/* The latest: in TLS 1.3 each is good for one connection, says OpenSSL, and that brings the next. */
static int keep_session(SSL *tls, SSL_SESSION *session) {
    struct client *client = SSL_get_app_data(tls);
    SSL_SESSION_free(client->session);
    client->session = session;
    return 1;
}

static void *run(void *which) {
    struct client *client = which;
    unsigned char chunk[CHUNK];
    client->done = 0;
    if (handshaking) {
        for (; now() < deadline; client->done++) {
            SSL *tls = dial(client);
            there_and_back(tls, 1);
            hang_up(tls);
        }
    } else if (echoing) {
        for (; now() < deadline; client->done++)
            there_and_back(client->tls, bytes);
    } else {
        memcpy(chunk, pattern, CHUNK);
        say(client->tls, chunk, 1);
        for (int last = 0; !last; client->done += CHUNK) {
            if (up) {
                last = now() >= deadline;
                chunk[0] = last ? LAST : MORE;
                say(client->tls, chunk, CHUNK);
            } else {
                hear(client->tls, chunk, CHUNK);
                if (memcmp(chunk + 1, pattern + 1, CHUNK - 1) != 0)
                    fail("what came through differs from what was sent");
                last = chunk[0] == LAST;
            }
        }
        if (up)
            hear(client->tls, chunk, 1);
    }
    return NULL;
}

static void speak_tls(int version) {
    if (!(context = SSL_CTX_new(TLS_client_method())) || !SSL_CTX_set_min_proto_version(context, version) ||
        !SSL_CTX_set_max_proto_version(context, version) || !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") ||
        !SSL_CTX_set_cipher_list(context, "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256") ||
        !SSL_CTX_set1_groups_list(context, "X25519:P-256"))
        broken("no TLS");
    if (resuming) {
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL_STORE);
        SSL_CTX_sess_set_new_cb(context, keep_session);
    }
}

/* ------------------------------------------------------------------------------------------------------ */

static int usage(void) {
    fprintf(stderr, "usage: tls-load handshake|resume|echo|up|down [-2] [-c CONNECTIONS] [-T SECONDS] [-s BYTES]\n");
    return 2;
}

int main(int count, char **words) {
    int version = TLS1_3_VERSION;
    if (count < 2)
        return usage();
    resuming = !strcmp(words[1], "resume");
    handshaking = resuming || !strcmp(words[1], "handshake");
    echoing = !strcmp(words[1], "echo");
    up = !strcmp(words[1], "up");
    int known = handshaking || echoing || up || !strcmp(words[1], "down");
    for (int option; (option = getopt(count - 1, words + 1, "2c:s:T:")) != -1;)
        switch (option) {
        case '2': version = TLS1_2_VERSION; break;
        case 'c': connections = atoi(optarg); break;
        case 's': bytes = atoi(optarg); break;
        case 'T': duration = atof(optarg) * SECOND; break;
        default: return usage();
        }
    if (!known || !connections || connections > MOST || bytes <= 0 || bytes > CHUNK || !duration)
        return usage();

    raise_descriptors();
    for (int i = 0; i < CHUNK; i++)
        pattern[i] = rand() >> 8; /* always the same bytes: the generator is not seeded */
    speak_tls(version);
    listen_somewhere();
    if (scanf("%u", &relay) != 1)
        fail("no port of a relay on stdin");
    told_to_go();
    pthread_detach(start(accept_all, NULL));
    for (unsigned i = 0; i < connections; i++) {
        SSL *tls = dial(&clients[i]);
        if (handshaking) {
            there_and_back(tls, 1); /* and with it a ticket */
            hang_up(tls);
        } else {
            clients[i].tls = tls;
        }
        if (resuming && !clients[i].session)
            fail("the relay gave no ticket");
    }
    for (puts("ready"); fflush(stdout), told_to_go();) {
        uint64_t started = now(), done = 0;
        deadline = started + duration;
        for (unsigned i = 0; i < connections; i++)
            clients[i].thread = start(run, &clients[i]);
        for (unsigned i = 0; i < connections; i++) {
            pthread_join(clients[i].thread, NULL);
            done += clients[i].done;
        }
        printf("done=%llu seconds=%.6f\n", (unsigned long long)done, (now() - started) / (double)SECOND);
    }
    exit(0);
}
