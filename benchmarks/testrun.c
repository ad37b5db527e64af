/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs packets through pinned eBPF programs (BPF_PROG_TEST_RUN) and tells what the kernel says that took.
 *
 *   testrun
 *       On CPU 0. Says "ready", then obeys lines on standard input:
 *
 *   case NUMBER PIN IFINDEX TRANSLATED PORT_AT ADDRESS_AT FIRST_PORT PORTS FRAME
 *       A case: a program by its pin, the link that the packet comes by, whether the program changes the packet's
 *       addresses, where its source port and the last two bytes of its source address are, and the packet, in hex.
 *       PORTS 0: always the same packet; 1: each packet of a flow that never was; else: of so many flows in turn, with
 *       ports from FIRST_PORT.
 *   once NUMBER TIMES
 *       Run it so often, the packet as it was each time; says the mean of the middle half, in picoseconds.
 *   all NUMBER TIMES
 *       The same, but says the mean of all of them: what one run in a hundred pays for the others is in it.
 *   row NUMBER TIMES
 *       Run it so often in a row, each time on what the time before has left; says the mean in picoseconds. TIMES
 *       is odd: a packet that is changed there and back must end up changed.
 *
 * Whatever does not come out as the case says ends the program, with the reason on standard error.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_CASES 1024
#define MAX_TIMES 10000
#define MAX_FRAME 256
#define WARM_UP 10 /* untimed runs at the start of each turn */
#define FROM_PORT 1024
#define LET_PASS 0xffffffffu /* TC_ACT_UNSPEC */

struct test_case {
	int program;
	uint32_t ifindex;
	int translated;
	int port_at, address_at;
	uint32_t first_port, ports, next;
	size_t length;
	unsigned char frame[MAX_FRAME];
};

static struct test_case cases[MAX_CASES];

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void refuse(const char *what, int number)
{
	fprintf(stderr, "case %d: %s\n", number, what);
	exit(1);
}

static void have_cpu(int cpu)
{
	const struct sched_param lowest = {.sched_priority = 1};
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) || sched_setscheduler(0, SCHED_FIFO, &lowest))
		fail("CPU");
}

static int open_pin(const char *path)
{
	union bpf_attr attr = {.pathname = (uintptr_t)path};
	long fd = syscall(SYS_bpf, BPF_OBJ_GET, &attr, sizeof(attr));

	if (fd < 0)
		fail(path);
	return (int)fd;
}

static size_t from_hex(const char *text, unsigned char *bytes)
{
	size_t length = 0;

	while (length < MAX_FRAME && sscanf(text + 2 * length, "%2hhx", &bytes[length]) == 1)
		length++;
	return length;
}

static struct test_case *case_of(int number)
{
	if (number < 0 || number >= MAX_CASES) {
		errno = ERANGE;
		fail("case");
	}
	return &cases[number];
}

static void read_case(const char *line)
{
	char pin[512], hex[2 * MAX_FRAME + 1];
	struct test_case made = {0};
	int number;

	if (sscanf(line, "case %d %511s %u %d %d %d %u %u %512s", &number, pin, &made.ifindex, &made.translated,
		   &made.port_at, &made.address_at, &made.first_port, &made.ports, hex) != 9) {
		errno = EINVAL;
		fail(line);
	}
	made.program = open_pin(pin);
	made.length = from_hex(hex, made.frame);
	*case_of(number) = made;
}

static void put16(unsigned char *at, uint32_t value)
{
	at[0] = value >> 8;
	at[1] = value;
}

/* Make the packet another flow's. Its checksums do not follow: nobody looks at them. */
static void vary(struct test_case *c)
{
	if (c->ports == 1) {
		put16(c->frame + c->port_at, FROM_PORT + c->next % (65536 - FROM_PORT));
		put16(c->frame + c->address_at, c->next / (65536 - FROM_PORT));
	} else if (c->ports) {
		put16(c->frame + c->port_at, c->first_port + c->next % c->ports);
	}
	c->next++;
}

/* Run it; the kernel's time. `repeat` runs are on one packet. */
static uint32_t run(int number, struct test_case *c, uint32_t repeat)
{
	struct __sk_buff context = {.ifindex = c->ifindex};
	unsigned char left[MAX_FRAME + 64];
	union bpf_attr attr = {.test = {
				   .prog_fd = c->program,
				   .data_in = (uintptr_t)c->frame,
				   .data_size_in = c->length,
				   .data_out = (uintptr_t)left,
				   .data_size_out = sizeof(left),
				   .ctx_in = (uintptr_t)&context,
				   .ctx_size_in = sizeof(context),
				   .repeat = repeat,
			       }};

	if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr)))
		fail("BPF_PROG_TEST_RUN");
	if (attr.test.retval != LET_PASS)
		refuse("the program did not let the packet pass", number);
	/* All that may change is before the port's end, and in a checksum behind. */
	if (attr.test.data_size_out != c->length ||
	    (memcmp(left + 14, c->frame + 14, c->port_at + 4 - 14) != 0) != c->translated)
		refuse("the packet did not become what it was to become", number);
	return attr.test.duration;
}

static int by_size(const void *a, const void *b)
{
	uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

	return (left > right) - (left < right);
}

/* In picoseconds. The clock has steps of some nanoseconds: a mean sees between them. left_out: outliers, on either side. */
static uint64_t once(int number, struct test_case *c, int times, int left_out)
{
	static uint32_t taken[MAX_TIMES];
	uint64_t sum = 0;
	int i;

	for (i = -WARM_UP; i < times; i++) {
		uint32_t ns;

		vary(c);
		ns = run(number, c, 1);
		if (i >= 0)
			taken[i] = ns;
	}
	qsort(taken, times, sizeof(*taken), by_size);
	for (i = left_out; i < times - left_out; i++)
		sum += taken[i];
	return sum * 1000 / (times - 2 * left_out);
}

int main(void)
{
	char *line = NULL, kind[8];
	size_t room = 0;
	int number, times;

	have_cpu(0);
	puts("ready");
	fflush(stdout);
	while (getline(&line, &room, stdin) > 0) {
		if (!strncmp(line, "case ", 5)) {
			read_case(line);
			continue;
		}
		if (sscanf(line, "%7s %d %d", kind, &number, &times) != 3 || times < 1 || times > MAX_TIMES) {
			errno = EINVAL;
			fail(line);
		}
		if (!strcmp(kind, "once"))
			printf("%llu\n", (unsigned long long)once(number, case_of(number), times, times / 4));
		else if (!strcmp(kind, "all"))
			printf("%llu\n", (unsigned long long)once(number, case_of(number), times, 0));
		else
			printf("%llu\n", run(number, case_of(number), times) * 1000ull);
		fflush(stdout);
	}
	return 0;
}
