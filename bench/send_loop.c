/* The yardstick: a bare loop of send(), what the kernel itself asks for one message to every client.
 *
 * usage: send_loop PORT RATE. One thread. It greets each connection without reading its request (no request, no HTTP, no
 * look at who left), and RATE times a second makes one message and sends it to every socket. What pushes messages over TCP
 * can cost less only by sharing a system call between sockets.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char GREETING[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    "Transfer-Encoding: chunked\r\n\r\n3\r\n:\n\n\r\n";

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int listen_on(int port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("send_loop");
        exit(1);
    }
    return listener;
}

/* The same 100 bytes of body as bench/peers/message.py, as one chunk; returns the chunk's length. */
static int make_chunk(char *chunk, size_t size, int number) {
    char body[101], event[200];
    memset(body, 'x', 100);
    body[100] = 0;
    snprintf(body, sizeof body, "@%019lld", (long long)now_ns());
    body[20] = ' ';
    int length = snprintf(event, sizeof event, "id: 5e4d10c0-%d\ndata: %s\n\n", number, body);
    return snprintf(chunk, size, "%x\r\n%s\r\n", length, event);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int listener = listen_on(atoi(argv[1])), clients[65536], count = 0, number = 0;
    int64_t period = 1e9 / atof(argv[2]), next = now_ns() + period;
    for (;;) {
        int64_t left = next - now_ns();
        if (left < 0) left = 0;
        struct timespec wait = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
        struct pollfd ready = {.fd = listener, .events = POLLIN};
        if (ppoll(&ready, 1, &wait, NULL) > 0 && count < 65536) {
            int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (client >= 0 && send(client, GREETING, sizeof GREETING - 1, MSG_NOSIGNAL) > 0) clients[count++] = client;
        }
        if (now_ns() < next) continue;
        next += period;
        char chunk[256];
        int length = make_chunk(chunk, sizeof chunk, ++number);
        for (int i = 0; i < count; i++)
            if (send(clients[i], chunk, length, MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
                close(clients[i]);
                clients[i--] = clients[--count];
            }
    }
}
