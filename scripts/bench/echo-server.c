/*
 * The yardstick of scripts/bench/echo: the least that an epoll echo server can do and still be an honest one.
 *
 * One thread, level-triggered epoll, one buffer for all connections. What the kernel will not take of an
 * echo is kept and sent when there is room; until then that connection is not read from. Keepalive 60:10:3
 * is set on the listener, from which Linux passes it on. No log, no deadline, no limit, no drain.
 *
 *   echo-server HOST:PORT    IPv4; port 0 takes a free one. Prints `listening on HOST:PORT`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 4096, EVENTS = 1024, CHUNK = 64 * 1024, DESCRIPTORS = 1 << 20 };

struct rest { /* the unsent end of an echo */
    char *bytes;
    size_t length, sent;
};

static struct rest *rests; /* by descriptor; its pages stay untouched until a connection needs one */
static char chunk[CHUNK];
static int poller;

static void die(const char *what) {
    fprintf(stderr, "echo-server: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void watch(int operation, int fd, uint32_t interest) {
    struct epoll_event event = {.events = interest, .data.fd = fd};
    if (epoll_ctl(poller, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static void hang_up(int fd) {
    free(rests[fd].bytes);
    rests[fd].bytes = NULL;
    close(fd);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            watch(EPOLL_CTL_ADD, fd, EPOLLIN);
        else if (errno == EAGAIN)
            return;
        else if (errno != EINTR && errno != ECONNABORTED)
            die("accept4");
    }
}

static void echo(int fd) {
    ssize_t got = recv(fd, chunk, sizeof chunk, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        close(fd);
        return;
    }
    ssize_t sent = send(fd, chunk, got, MSG_NOSIGNAL);
    if (sent == got)
        return;
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        close(fd);
        return;
    }
    size_t from = sent < 0 ? 0 : sent, length = got - from;
    char *bytes = malloc(length);
    if (!bytes)
        die("malloc");
    memcpy(bytes, chunk + from, length);
    rests[fd] = (struct rest){bytes, length, 0};
    watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static void flush(int fd) {
    struct rest *rest = &rests[fd];
    ssize_t sent = send(fd, rest->bytes + rest->sent, rest->length - rest->sent, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            hang_up(fd);
        return;
    }
    rest->sent += sent;
    if (rest->sent == rest->length) {
        free(rest->bytes);
        rest->bytes = NULL;
        watch(EPOLL_CTL_MOD, fd, EPOLLIN);
    }
}

static int listen_on(const char *text) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[INET_ADDRSTRLEN];
    unsigned port;
    if (sscanf(text, "%15[0-9.]:%u", host, &port) != 2 || port > 65535 ||
        inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "echo-server: not an IPv4 HOST:PORT: %s\n", text);
        exit(2);
    }
    address.sin_port = htons(port);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1, idle = 60, interval = 10, retries = 3;
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        setsockopt(listener, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) < 0 ||
        setsockopt(listener, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) < 0 ||
        setsockopt(listener, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval) < 0 ||
        setsockopt(listener, IPPROTO_TCP, TCP_KEEPCNT, &retries, sizeof retries) < 0)
        die("cannot make a listener");
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, BACKLOG) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die(text);
    printf("listening on %s:%u\n", host, ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int count, char **words) {
    if (count != 2) {
        fprintf(stderr, "usage: echo-server HOST:PORT\n");
        return 2;
    }
    struct rlimit descriptors;
    if (getrlimit(RLIMIT_NOFILE, &descriptors) < 0)
        die("getrlimit");
    descriptors.rlim_cur = descriptors.rlim_max < DESCRIPTORS ? descriptors.rlim_max : DESCRIPTORS;
    if (setrlimit(RLIMIT_NOFILE, &descriptors) < 0)
        die("setrlimit");
    rests = calloc(descriptors.rlim_cur, sizeof *rests);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!rests || poller < 0)
        die("cannot start");
    int listener = listen_on(words[1]);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);

    static struct epoll_event events[EVENTS];
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_all(listener);
            else if (events[i].events & EPOLLOUT) /* only ever asked for while there is a rest */
                flush(fd);
            else
                echo(fd);
        }
    }
}
