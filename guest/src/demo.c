/* The embedded guest: one scenario a boot, named on the kernel command line.
 *
 *   KTSTR_SHM_BASE=0x… KTSTR_SHM_SIZE=0x…   the ring
 *   tsc_early_khz=N                         the clock's frequency, where the machine does not have it
 *   demo.scenario=…                         one of the table below
 *   demo.count=N demo.size=S                messages and their bytes, of flood and overrun; rings of doorbell
 *   demo.steps=N demo.step_ms=T             stimuli of ok, and the pause before each
 *   demo.stay=1                             whether it stays when it is done, and does not reset the machine
 *   demo.lie=… demo.exit=N                  what hostile does, and whether it reports EXIT N after
 */
#include "cpu.h"
#include "ring.h"

enum { MAX_PAYLOAD = 1 << 20, EXIT_RING_COVERED = 90, EXIT_NO_SCENARIO = 91 };
enum { MILLISECOND = 1000000 };
enum { PATIENCE = 1000 }; /* looks at a full ring before the host is rung for */
enum { SLOT_HOST = 0, SLOT_GUEST = 1, SHUTDOWN = 0xdd, PROBES_READY = 2 };

static struct ring ring;
static struct boot_info boot;

static uint64_t length(const char *s)
{
	uint64_t n = 0;
	while (s[n])
		n++;
	return n;
}

static void say(const char *s) { cpu_console(s, length(s)); }

/* Returns what follows "name=" on the command line, up to a space or the end; 0 if it is absent. */
static const char *param(const char *name)
{
	uint64_t n = length(name);
	for (const char *p = boot.cmdline; *p;) {
		uint64_t i = 0;
		while (i < n && p[i] == name[i])
			i++;
		if (i == n && p[i] == '=')
			return p + n + 1;
		while (*p && *p != ' ')
			p++;
		while (*p == ' ')
			p++;
	}
	return 0;
}

static int param_is(const char *name, const char *value)
{
	const char *p = param(name);
	if (!p)
		return 0;
	while (*value && *p == *value)
		p++, value++;
	return !*value && (!*p || *p == ' ');
}

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *p = param(name);
	uint64_t base = 10, v = 0;
	if (!p)
		return otherwise;
	if (p[0] == '0' && p[1] == 'x')
		base = 16, p += 2;
	for (;; p++) {
		uint64_t digit = *p >= '0' && *p <= '9' ? (uint64_t)(*p - '0') :
			*p >= 'a' && *p <= 'f' ? (uint64_t)(*p - 'a' + 10) : 16;
		if (digit >= base)
			return v;
		v = v * base + digit;
	}
}

static void pause_ns(uint64_t ns)
{
	for (uint64_t end = cpu_nanoseconds() + ns; cpu_nanoseconds() < end;)
		cpu_relax();
}

/* Writes a message when there is room for it. The host is rung for where it should come at once: to make room,
 * and for a message that ends the run. */
static void send(uint32_t type, const void *payload, uint32_t len)
{
	for (unsigned looks = 0; !ring_has_room(&ring, len); looks++)
		if (looks == PATIENCE)
			cpu_bell();
		else
			cpu_relax();
	ring_write(&ring, type, payload, len);
	if (type == EXIT || type == SCDX || type == CRSH)
		cpu_bell();
}

static void send_text(uint32_t type, const char *s) { send(type, s, (uint32_t)length(s)); }

static void send_code(uint32_t type, int32_t code) { send(type, &code, sizeof code); }

static uint8_t slot(int i) { return __atomic_load_n(&ring.header->slot[i], __ATOMIC_ACQUIRE); }

static void spin(void)
{
	for (;;)
		__asm__ volatile("");
}

static void steps(uint64_t count, uint64_t ms)
{
	uint64_t start = cpu_nanoseconds();
	for (uint64_t i = 0; i < count; i++) {
		pause_ns(ms * MILLISECOND);
		struct stimulus s = {
			.elapsed_ms = (uint32_t)((cpu_nanoseconds() - start) / MILLISECOND),
			.step_index = (uint16_t)i,
			.op_count = 2,
			.op_kinds = 5,
			.cgroup_count = (uint16_t)(i + 1),
			.worker_count = (uint16_t)(2 * (i + 1)),
			.total_iterations = 1000 * (i + 1),
		};
		send(STIM, &s, sizeof s);
	}
}

static void ok(void)
{
	send(SCST, "", 0);
	steps(number("demo.steps", 3), number("demo.step_ms", 50));
	send_text(TEST, "{\"name\":\"demo\",\"passed\":true}");
	send_text(PMET, "{\"payload_index\":0,\"metrics\":[{\"name\":\"iterations\",\"value\":3000}]}");
	send_text(RAWO, "{\"payload_index\":0,\"stdout\":\"3000 iterations\\n\",\"stderr\":\"\"}");
	send(SCEN, "", 0);
	send_code(EXIT, 0);
}

static void fail(void)
{
	send(SCST, "", 0);
	send_text(TEST, "{\"name\":\"demo\",\"passed\":false}");
	send(SCEN, "", 0);
	send_code(EXIT, 3);
}

static void sched_exit(void)
{
	send(SCST, "", 0);
	say("the scheduler is gone\n");
	send_code(SCDX, 7);
	spin();
}

static void crash(void)
{
	send(SCST, "", 0);
	send_text(CRSH, "panic: the demo crashes as it was told to\n  at crash (demo.c)\n  at guest_main (demo.c)");
}

static void graceful(void)
{
	send(SCST, "", 0);
	while (slot(SLOT_HOST) != SHUTDOWN)
		cpu_relax();
	send(SCEN, "", 0);
	send_code(EXIT, 0);
}

static void silent(void) { send(SCST, "", 0); }

/* RAWO messages that begin with their number; the rest is a pattern of the place. */
static void many(int wait)
{
	static uint8_t payload[MAX_PAYLOAD];
	uint64_t count = number("demo.count", 100000), size = number("demo.size", 24);
	if (size > MAX_PAYLOAD)
		size = MAX_PAYLOAD;
	for (uint64_t i = 0; i < size; i++)
		payload[i] = (uint8_t)(i * 7);
	for (uint64_t i = 0; i < count; i++) {
		__builtin_memcpy(payload, &i, size < 8 ? size : 8);
		if (wait)
			send(RAWO, payload, (uint32_t)size);
		else
			ring_write(&ring, RAWO, payload, (uint32_t)size);
	}
	send_code(EXIT, 0);
}

static void flood(void) { many(1); }
static void overrun(void) { many(0); }

static void stall(void)
{
	send(SCST, "", 0);
	while (__atomic_load_n(&ring.header->stall, __ATOMIC_ACQUIRE) != 'S')
		if (slot(SLOT_HOST) == SHUTDOWN) {
			send_code(EXIT, 1);
			return;
		} else
			cpu_relax();
	__atomic_store_n(&ring.header->stall, 0, __ATOMIC_RELEASE);
	send_text(TEST, "{\"name\":\"stall\",\"passed\":true}");
	send_code(EXIT, 0);
}

static void signals(void)
{
	send(SCST, "", 0);
	__atomic_store_n(&ring.header->slot[SLOT_GUEST], PROBES_READY, __ATOMIC_RELEASE);
	while (!slot(SLOT_HOST))
		cpu_relax();
	send_code(EXIT, slot(SLOT_HOST) == 1 ? 0 : 1);
}

/* Rings the doorbell, though there is nothing to read, count times or until it is asked to stop. */
static void doorbell(void)
{
	for (uint64_t left = number("demo.count", UINT64_MAX); left && slot(SLOT_HOST) != SHUTDOWN; left--)
		cpu_bell();
	send_code(EXIT, 0);
}

/* Says SCDX count times, as if each were the last it does. The host answers each in its signal slot; how long
 * that took, in nanoseconds, is the next one's code. Between them is what the host needs to have an ear for the
 * next, and any part of the 10 ms of its poll. */
static void echo(void)
{
	uint64_t count = number("demo.count", 100), rest = 50 * MILLISECOND, poll = 10 * MILLISECOND;
	int32_t took = 0;
	for (uint64_t i = 0; i <= count; i++) {
		pause_ns(rest + poll * (i * 377 % 610) / 610); /* Fibonacci numbers: spread evenly, in no order */
		uint64_t start = cpu_nanoseconds();
		send_code(SCDX, took);
		while (!slot(SLOT_HOST))
			cpu_relax();
		took = (int32_t)(cpu_nanoseconds() - start);
		__atomic_store_n(&ring.header->slot[SLOT_HOST], 0, __ATOMIC_RELEASE);
	}
	send_code(EXIT, 0);
}

/* Waits until the host has read, or skipped, all that was written. */
static void wait_until_read(void)
{
	while (__atomic_load_n(&ring.header->read_ptr, __ATOMIC_ACQUIRE) != ring.header->write_ptr)
		cpu_relax();
}

/* Breaks the protocol in one way, waits until the host has coped, and ends as it is told. */
static void hostile(void)
{
	struct ring_header *h = ring.header;
	send(SCST, "", 0);
	wait_until_read();
	uint64_t position = h->write_ptr;
	uint32_t *at = (uint32_t *)(ring.data + position); /* 16: aligned, far from the end */
	if (param_is("demo.lie", "behind"))
		__atomic_store_n(&h->write_ptr, position - 8, __ATOMIC_RELEASE);
	else if (param_is("demo.lie", "ahead"))
		__atomic_store_n(&h->write_ptr, position + ring.capacity + 4096, __ATOMIC_RELEASE);
	else if (param_is("demo.lie", "length")) {
		at[0] = EXIT, at[1] = 0xfffffff0, at[2] = 0, at[3] = 0;
		__atomic_store_n(&h->write_ptr, position + 32, __ATOMIC_RELEASE);
	} else if (param_is("demo.lie", "incomplete")) {
		at[0] = EXIT, at[1] = 100, at[2] = 0, at[3] = 0;
		__atomic_store_n(&h->write_ptr, position + 20, __ATOMIC_RELEASE);
	} else if (param_is("demo.lie", "crc")) {
		at[0] = EXIT, at[1] = 4, at[2] = 0x1234, at[3] = 0, at[4] = 0;
		__atomic_store_n(&h->write_ptr, position + 20, __ATOMIC_RELEASE);
	} else if (param_is("demo.lie", "exit-payload"))
		send(EXIT, "12345", 5);
	else if (param_is("demo.lie", "header")) {
		h->magic = 0, h->version = 99;
		__atomic_store_n(&h->capacity, 0xffffffff, __ATOMIC_RELEASE);
		while (__atomic_load_n(&h->capacity, __ATOMIC_ACQUIRE) == 0xffffffff)
			cpu_relax();
	}
	wait_until_read();
	if (param("demo.exit"))
		send_code(EXIT, (int32_t)number("demo.exit", 0));
}

static const struct {
	const char *name;
	void (*run)(void);
} scenarios[] = {
	{"ok", ok},
	{"fail", fail},
	{"sched-exit", sched_exit},
	{"crash", crash},
	{"hang", spin},
	{"graceful", graceful},
	{"silent", silent},
	{"triple-fault", cpu_triple_fault},
	{"flood", flood},
	{"overrun", overrun},
	{"stall", stall},
	{"signals", signals},
	{"doorbell", doorbell},
	{"echo", echo},
	{"hostile", hostile},
};

struct span {
	uint64_t start, size;
};

static int covers(void *ring_span, uint64_t start, uint64_t size)
{
	const struct span *r = ring_span;
	return start < r->start + r->size && r->start < start + size;
}

void guest_main(const void *boot_data)
{
	boot = cpu_boot(boot_data);
	cpu_clock_khz(number("tsc_early_khz", 0));
	struct span where = {number("KTSTR_SHM_BASE", 0), number("KTSTR_SHM_SIZE", 0)};
	cpu_map(where.start, where.size);
	if (!ring_open(&ring, (void *)where.start, where.size)) {
		say("no ring at KTSTR_SHM_BASE\n");
		cpu_reset();
	}
	int32_t code = EXIT_NO_SCENARIO;
	if (boot.each_range(&boot, covers, &where))
		code = EXIT_RING_COVERED;
	else
		for (unsigned i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++)
			if (param_is("demo.scenario", scenarios[i].name)) {
				scenarios[i].run();
				while (number("demo.stay", 0))
					cpu_relax();
				cpu_reset();
			}
	send_code(EXIT, code);
	cpu_reset();
}
