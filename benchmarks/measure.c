/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The measuring program: a client whose system calls are timed, and the server that it talks to.
 *
 *   measure serve TCP_PORT UDP_PORT
 *       Echo on both until killed, on CPU 1. Says "ready".
 *
 *   measure client ADDRESS TCP_PORT UDP_PORT OWN_PORT BACKEND_NETNS
 *       On CPU 0; for each line "TEST N" on standard input, do the test N times and answer with the median time in
 *       nanoseconds. Says "ready FLOOR", the time that two readings of the clock take by themselves; that is part of
 *       every figure. OWN_PORT is where the client itself is at the other end, by a socket in BACKEND_NETNS: all but
 *       the round trips are measured that way, for waking another process up takes longer than all that is of interest
 *       here, and not always equally long.
 *
 * Nobody waits in here for the client's turn but itself: it sleeps in read(2) until it is told to go on. What can't be
 * done ends the program, with the reason on standard error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_TIMES 10000
#define WARM_UP 10	    /* untimed repetitions at the start of each turn: others have had the caches meanwhile */
#define PATIENCE_SECONDS 10 /* a turn takes milliseconds; what takes longer has lost a datagram */
#define QUERY_BYTES 40	    /* a DNS query for a Service's name */

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static int must(const char *what, long result)
{
	if (result < 0)
		fail(what);
	return (int)result;
}

static void have_cpu(int cpu)
{
	const struct sched_param lowest = {.sched_priority = 1};
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	must("sched_setaffinity", sched_setaffinity(0, sizeof(set), &set));
	/* Before whatever else works on this machine: a turn is short, and between turns there is nothing to do. */
	must("sched_setscheduler", sched_setscheduler(0, SCHED_FIFO, &lowest));
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC_RAW, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Add the time that statements take to `sum`. */
#define TIMED(sum, ...)                                                                                                \
	do {                                                                                                           \
		uint64_t began_ = now();                                                                               \
		__VA_ARGS__;                                                                                           \
		sum += now() - began_;                                                                                 \
	} while (0)

static int udp_socket(void)
{
	return must("socket", socket(AF_INET, SOCK_DGRAM, 0));
}

/* Its close resets the connection: nothing stays behind in TIME_WAIT, where a hundred thousand would pile up. */
static int tcp_socket(void)
{
	const struct linger reset = {.l_onoff = 1};
	int sock = must("socket", socket(AF_INET, SOCK_STREAM, 0));

	must("SO_LINGER", setsockopt(sock, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)));
	return sock;
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

	if (inet_pton(AF_INET, ip, &made.sin_addr) != 1) {
		errno = EINVAL;
		fail(ip);
	}
	return made;
}

static void connect_to(int sock, const struct sockaddr_in *to)
{
	must("connect", connect(sock, (const struct sockaddr *)to, sizeof(*to)));
}

static void send_to(int sock, const void *data, size_t size, const struct sockaddr_in *to)
{
	must("sendto", sendto(sock, data, size, 0, (const struct sockaddr *)to, sizeof(*to)));
}

static void receive_from(int sock, struct sockaddr_in *source)
{
	char data[QUERY_BYTES];
	socklen_t size = sizeof(*source);

	must("recvfrom", recvfrom(sock, data, sizeof(data), 0, (struct sockaddr *)source, &size));
}

/* --- The client */

/* sock: what a test keeps between its repetitions; own: the other end, where that is the client's too. */
struct client {
	struct sockaddr_in tcp, udp, own_port;
	int backend_netns, client_netns;
	int sock, own;
	char query[QUERY_BYTES];
};

/* begin, end: untimed, around a turn of `times` repetitions; once: one repetition, returns its nanoseconds. */
struct test {
	const char *name;
	void (*begin)(struct client *client, int times);
	uint64_t (*once)(struct client *client);
	void (*end)(struct client *client);
};

/* A redirect that is not undone for the client would be cheaper; it is no fair match. */
static void expect_source(const struct sockaddr_in *source, const struct sockaddr_in *dialled)
{
	if (source->sin_addr.s_addr == dialled->sin_addr.s_addr && source->sin_port == dialled->sin_port)
		return;
	fprintf(stderr, "the client sees another peer than it dialled\n");
	exit(1);
}

static void look_at_peer(int sock, const struct sockaddr_in *dialled)
{
	struct sockaddr_in peer;
	socklen_t size = sizeof(peer);

	must("getpeername", getpeername(sock, (struct sockaddr *)&peer, &size));
	expect_source(&peer, dialled);
}

static void begin_nothing(struct client *client, int times)
{
	(void)client;
	(void)times;
}

static void end_nothing(struct client *client)
{
	(void)client;
}

/* Open the other end: a socket in the backend's namespace. */
static void begin_own(struct client *client, int type)
{
	const int on = 1;
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = client->own_port.sin_port};

	must("setns", setns(client->backend_netns, CLONE_NEWNET));
	client->own = must("socket", socket(AF_INET, type, 0));
	must("SO_REUSEADDR", setsockopt(client->own, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)));
	must("bind", bind(client->own, (struct sockaddr *)&any, sizeof(any)));
	must("setns", setns(client->client_netns, CLONE_NEWNET));
}

static void begin_own_tcp(struct client *client, int times)
{
	(void)times;
	begin_own(client, SOCK_STREAM);
	must("listen", listen(client->own, 16));
}

static void begin_own_udp(struct client *client, int times)
{
	(void)times;
	begin_own(client, SOCK_DGRAM);
	client->sock = udp_socket();
}

static void begin_own_connected_udp(struct client *client, int times)
{
	begin_own_udp(client, times);
	connect_to(client->sock, &client->own_port);
	look_at_peer(client->sock, &client->own_port);
}

static void answer_oneself(struct client *client)
{
	struct sockaddr_in asker;

	receive_from(client->own, &asker);
	send_to(client->own, client->query, sizeof(client->query), &asker);
}

/* Have a reply wait for each repetition, and look at one. */
static void begin_replies(struct client *client, int times)
{
	struct sockaddr_in source;

	begin_own_udp(client, times);
	for (times++; times; times--) {
		send_to(client->sock, client->query, sizeof(client->query), &client->own_port);
		answer_oneself(client);
	}
	receive_from(client->sock, &source);
	expect_source(&source, &client->own_port);
}

static void begin_tcp(struct client *client, int times)
{
	const int on = 1;

	(void)times;
	client->sock = tcp_socket();
	connect_to(client->sock, &client->tcp);
	must("TCP_NODELAY", setsockopt(client->sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)));
	look_at_peer(client->sock, &client->tcp);
}

static void end_own(struct client *client)
{
	close(client->own);
}

static void end_socket(struct client *client)
{
	close(client->sock);
}

static void end_both(struct client *client)
{
	end_socket(client);
	end_own(client);
}

static void accept_own(struct client *client)
{
	close(must("accept", accept(client->own, NULL, NULL)));
}

static uint64_t tcp_connect(struct client *client)
{
	uint64_t ns = 0;
	int sock = tcp_socket();

	TIMED(ns, connect_to(sock, &client->own_port));
	accept_own(client);
	close(sock);
	return ns;
}

static uint64_t tcp_cycle(struct client *client)
{
	uint64_t ns = 0;

	TIMED(ns, {
		int sock = tcp_socket();
		connect_to(sock, &client->own_port);
		close(sock);
	});
	accept_own(client);
	return ns;
}

static uint64_t udp_connect(struct client *client)
{
	uint64_t ns = 0;
	int sock = udp_socket();

	TIMED(ns, connect_to(sock, &client->udp));
	close(sock);
	return ns;
}

static uint64_t udp_connect_again(struct client *client)
{
	uint64_t ns = 0;

	TIMED(ns, connect_to(client->sock, &client->own_port));
	return ns;
}

static uint64_t peername(struct client *client)
{
	struct sockaddr_in peer;
	socklen_t size = sizeof(peer);
	uint64_t ns = 0;

	TIMED(ns, must("getpeername", getpeername(client->sock, (struct sockaddr *)&peer, &size)));
	return ns;
}

static uint64_t send_unconnected(struct client *client)
{
	uint64_t ns = 0;

	TIMED(ns, send_to(client->sock, "?", 1, &client->own_port));
	return ns;
}

static uint64_t send_connected(struct client *client)
{
	uint64_t ns = 0;

	TIMED(ns, must("send", send(client->sock, "?", 1, 0)));
	return ns;
}

static uint64_t receive(struct client *client)
{
	struct sockaddr_in source;
	uint64_t ns = 0;

	TIMED(ns, receive_from(client->sock, &source));
	return ns;
}

static uint64_t tcp_round_trip(struct client *client)
{
	char byte = '?';
	uint64_t ns = 0;

	TIMED(ns, {
		must("send", send(client->sock, &byte, 1, 0));
		must("recv", recv(client->sock, &byte, 1, 0));
	});
	return ns;
}

/* One query as most resolvers make it. ask_own: the client answers itself, untimed, so that only its calls count. */
static uint64_t query_connected(struct client *client, const struct sockaddr_in *to, int ask_own)
{
	char answer[QUERY_BYTES];
	uint64_t ns = 0;
	int sock;

	TIMED(ns, {
		sock = udp_socket();
		connect_to(sock, to);
		must("send", send(sock, client->query, sizeof(client->query), 0));
		if (!ask_own)
			must("recv", recv(sock, answer, sizeof(answer), 0));
	});
	if (ask_own) {
		answer_oneself(client);
		TIMED(ns, must("recv", recv(sock, answer, sizeof(answer), 0)));
	}
	TIMED(ns, close(sock));
	return ns;
}

static uint64_t query_unconnected(struct client *client, const struct sockaddr_in *to, int ask_own)
{
	struct sockaddr_in source;
	uint64_t ns = 0;
	int sock;

	TIMED(ns, {
		sock = udp_socket();
		send_to(sock, client->query, sizeof(client->query), to);
		if (!ask_own)
			receive_from(sock, &source);
	});
	if (ask_own) {
		answer_oneself(client);
		TIMED(ns, receive_from(sock, &source));
	}
	expect_source(&source, to);
	TIMED(ns, close(sock));
	return ns;
}

static uint64_t dns(struct client *client)
{
	return query_connected(client, &client->udp, 0);
}

static uint64_t dns_unconnected(struct client *client)
{
	return query_unconnected(client, &client->udp, 0);
}

static uint64_t dns_calls(struct client *client)
{
	return query_connected(client, &client->own_port, 1);
}

static uint64_t dns_unconnected_calls(struct client *client)
{
	return query_unconnected(client, &client->own_port, 1);
}

static const struct test TESTS[] = {
    {"tcp-connect", begin_own_tcp, tcp_connect, end_own},
    {"tcp-cycle", begin_own_tcp, tcp_cycle, end_own},
    {"udp-connect", begin_nothing, udp_connect, end_nothing},
    {"udp-again", begin_own_connected_udp, udp_connect_again, end_both},
    {"getpeername-tcp", begin_tcp, peername, end_socket},
    {"getpeername-udp", begin_own_connected_udp, peername, end_both},
    {"sendto", begin_own_udp, send_unconnected, end_both},
    {"recvfrom", begin_replies, receive, end_both},
    {"send", begin_own_connected_udp, send_connected, end_both},
    {"tcp-rr", begin_tcp, tcp_round_trip, end_socket},
    {"dns", begin_nothing, dns, end_nothing},
    {"dns-unconnected", begin_nothing, dns_unconnected, end_nothing},
    {"dns-calls", begin_own_udp, dns_calls, end_both},
    {"dns-unconnected-calls", begin_own_udp, dns_unconnected_calls, end_both},
};

static int by_size(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return (left > right) - (left < right);
}

static uint64_t median(uint64_t *values, int count)
{
	qsort(values, count, sizeof(*values), by_size);
	return values[count / 2];
}

static uint64_t take_turn(struct client *client, const struct test *test, int times)
{
	static uint64_t taken[MAX_TIMES];
	int i;

	alarm(PATIENCE_SECONDS);
	test->begin(client, times + WARM_UP);
	for (i = 0; i < WARM_UP; i++)
		test->once(client);
	for (i = 0; i < times; i++)
		taken[i] = test->once(client);
	test->end(client);
	alarm(0);
	return median(taken, times);
}

static uint64_t clock_floor(void)
{
	static uint64_t taken[MAX_TIMES];
	int i;

	for (i = 0; i < MAX_TIMES; i++) {
		taken[i] = 0;
		TIMED(taken[i], (void)0);
	}
	return median(taken, MAX_TIMES);
}

static const struct test *test_named(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(TESTS) / sizeof(*TESTS); i++)
		if (!strcmp(TESTS[i].name, name))
			return &TESTS[i];
	fprintf(stderr, "no test is named %s\n", name);
	exit(1);
}

static int be_client(char **arguments)
{
	struct client client = {
	    .tcp = address(arguments[0], arguments[1]),
	    .udp = address(arguments[0], arguments[2]),
	    .own_port = address(arguments[0], arguments[3]),
	    .backend_netns = must(arguments[4], open(arguments[4], O_RDONLY | O_CLOEXEC)),
	    .client_netns = must("/proc/self/ns/net", open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)),
	    .query = "?",
	};
	char name[64];
	int times;

	have_cpu(0);
	printf("ready %llu\n", (unsigned long long)clock_floor());
	fflush(stdout);
	while (scanf("%63s %d", name, &times) == 2 && times > 0 && times <= MAX_TIMES) {
		printf("%llu\n", (unsigned long long)take_turn(&client, test_named(name), times));
		fflush(stdout);
	}
	return 0;
}

/* --- The server */

static int bound(int type, const char *port)
{
	const int on = 1;
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	int sock = must("socket", socket(AF_INET, type | SOCK_NONBLOCK, 0));

	must("SO_REUSEADDR", setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)));
	must("bind", bind(sock, (struct sockaddr *)&any, sizeof(any)));
	return sock;
}

static void watch(int epoll, int sock)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = sock};

	must("epoll_ctl", epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &event));
}

static void accept_all(int epoll, int listener)
{
	int sock;

	while ((sock = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
		watch(epoll, sock);
}

static void answer_all(int sock)
{
	char data[QUERY_BYTES];
	struct sockaddr_in asker;
	socklen_t size = sizeof(asker);
	ssize_t got;

	while ((got = recvfrom(sock, data, sizeof(data), 0, (struct sockaddr *)&asker, &size)) > 0)
		sendto(sock, data, got, 0, (struct sockaddr *)&asker, size);
}

static void echo(int sock)
{
	char data[QUERY_BYTES];
	ssize_t got = read(sock, data, sizeof(data));

	if (got <= 0 || write(sock, data, got) != got)
		close(sock);
}

static _Noreturn void be_server(char **arguments)
{
	struct epoll_event events[64];
	int epoll = must("epoll_create1", epoll_create1(0));
	int listener = bound(SOCK_STREAM, arguments[0]), datagrams = bound(SOCK_DGRAM, arguments[1]);
	int count, i;

	have_cpu(1);
	must("listen", listen(listener, 4096));
	watch(epoll, listener);
	watch(epoll, datagrams);
	puts("ready");
	fflush(stdout);
	for (;;) {
		count = epoll_wait(epoll, events, 64, -1);
		for (i = 0; i < count; i++)
			if (events[i].data.fd == listener)
				accept_all(epoll, listener);
			else if (events[i].data.fd == datagrams)
				answer_all(datagrams);
			else
				echo(events[i].data.fd);
	}
}

int main(int count, char **arguments)
{
	if (count == 4 && !strcmp(arguments[1], "serve"))
		be_server(arguments + 2);
	if (count == 7 && !strcmp(arguments[1], "client"))
		return be_client(arguments + 2);
	fprintf(stderr, "usage: see the head of measure.c\n");
	return 2;
}
