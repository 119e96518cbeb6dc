#include "cpu.h"

enum { PL011_FR = 0x18 / 4 }; /* flags: Arm DDI 0183, table 3-1 */
enum { PSCI_SYSTEM_RESET = 0x84000009 }; /* Arm DEN 0022, section 5.13 */

/* The flattened device tree: Devicetree Specification 0.4, section 5. */
enum { FDT_BEGIN_NODE = 1, FDT_END_NODE = 2, FDT_PROP = 3, FDT_NOP = 4 };

struct fdt_header {
	uint32_t magic, size, structure, strings;
};

static uint32_t be32(const void *p)
{
	uint32_t v;
	__builtin_memcpy(&v, p, sizeof v);
	return __builtin_bswap32(v);
}

static uint64_t be64(const void *p) { return (uint64_t)be32(p) << 32 | be32((const char *)p + 4); }

static int begins(const char *s, const char *with)
{
	while (*with && *s == *with)
		s++, with++;
	return !*with;
}

/* Calls fn for each property of that name in nodes whose names begin with node, and in the nodes below them, until
 * it returns non-zero, which is returned. The tree is the host's: it is not checked. */
static int each_property(const void *tree, const char *node, const char *property,
			 int (*fn)(void *arg, const void *value, uint32_t size), void *arg)
{
	const struct fdt_header *h = tree;
	const char *at = (const char *)tree + be32(&h->structure), *strings = (const char *)tree + be32(&h->strings);
	int depth = 0, inside = 0; /* the depth of the node that matched, or 0 */
	for (;;) {
		uint32_t token = be32(at);
		at += 4;
		if (token == FDT_BEGIN_NODE) {
			depth++;
			if (!inside && begins(at, node))
				inside = depth;
			while (*at)
				at++;
			at = (const char *)(((uint64_t)at + 4) & ~(uint64_t)3);
		} else if (token == FDT_END_NODE) {
			if (inside == depth--)
				inside = 0;
		} else if (token == FDT_PROP) {
			uint32_t size = be32(at);
			const char *name = strings + be32(at + 4);
			int r = 0;
			if (inside && begins(name, property) && begins(property, name))
				r = fn(arg, at + 8, size);
			if (r)
				return r;
			at += 8 + ((size + 3) & ~3u);
		} else if (token != FDT_NOP)
			return 0;
	}
}

static volatile uint32_t *uart; /* a PL011's data register, which takes a byte at any time in a machine of software */

void cpu_console(const char *text, uint64_t len)
{
	while (len-- && uart)
		*uart = (uint8_t)*text++;
}

/* The compiler calls these for copies and initial values that it does not do in line. */
void *memcpy(void *to, const void *from, uint64_t len)
{
	typedef uint64_t word __attribute__((aligned(1), may_alias));
	uint8_t *d = to;
	const uint8_t *s = from;
	for (; len >= 8; len -= 8, d += 8, s += 8)
		*(volatile word *)d = *(const word *)s;
	for (; len; len--)
		*(volatile uint8_t *)d++ = *s++;
	return to;
}

void *memset(void *to, int v, uint64_t len)
{
	for (volatile uint8_t *d = to; len; len--)
		*d++ = (uint8_t)v;
	return to;
}

static void psci(uint32_t function)
{
	register uint64_t x0 __asm__("x0") = function;
	__asm__ volatile("hvc #0" : "+r"(x0) : : "x1", "x2", "x3", "memory");
}

void cpu_reset(void)
{
	for (;;)
		psci(PSCI_SYSTEM_RESET);
}

void cpu_fault(uint64_t syndrome, uint64_t at, uint64_t address)
{
	static const char digits[] = "0123456789abcdef";
	const char *names[] = {"fault: ESR 0x", " ELR 0x", " FAR 0x"};
	uint64_t values[] = {syndrome, at, address};
	for (int i = 0; i < 3; i++) {
		const char *end = names[i];
		while (*end)
			end++;
		cpu_console(names[i], (uint64_t)(end - names[i]));
		for (int shift = 60; shift >= 0; shift -= 4)
			cpu_console(&digits[values[i] >> shift & 15], 1);
	}
	cpu_console("\n", 1);
	cpu_reset();
}

/* The vectors catch every fault, and reset the machine. */
void cpu_triple_fault(void)
{
	for (;;)
		__asm__ volatile("udf #0");
}

void cpu_relax(void) { __asm__ volatile("yield" : : : "memory"); }

/* All of the memory is mapped: start_arm64.S. */
void cpu_map(uint64_t base, uint64_t size) { (void)base, (void)size; }

/* The machine itself says what the frequency is. */
void cpu_clock_khz(uint64_t khz) { (void)khz; }

uint64_t cpu_nanoseconds(void)
{
	uint64_t count, hz;
	__asm__ volatile("mrs %0, cntfrq_el0" : "=r"(hz));
	__asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(count) : : "memory");
	return count / hz * 1000000000 + count % hz * 1000000000 / hz;
}

/* There is no doorbell here: the host polls. */
void cpu_bell(void) {}

struct visit {
	const void *tree;
	int (*fn)(void *, uint64_t, uint64_t);
	void *arg;
	uint64_t start, end; /* of the range that is looked at */
};

/* Takes a reserved range away from the one that is looked at; each reaches up to its end. */
static int without(void *arg, const void *value, uint32_t size)
{
	struct visit *v = arg;
	if (size < 16)
		return 0;
	uint64_t start = be64(value), end = start + be64((const char *)value + 8);
	if (start < v->end && end >= v->end)
		v->end = start;
	return 0;
}

static int memory(void *arg, const void *value, uint32_t size)
{
	struct visit *v = arg;
	for (const char *p = value; size >= 16; size -= 16, p += 16) {
		v->start = be64(p), v->end = v->start + be64(p + 8);
		each_property(v->tree, "reserved-memory", "reg", without, v);
		int r = v->fn(v->arg, v->start, v->end - v->start);
		if (r)
			return r;
	}
	return 0;
}

static int each_memory(const struct boot_info *b, int (*fn)(void *, uint64_t, uint64_t), void *arg)
{
	struct visit v = {b->table, fn, arg, 0, 0};
	return each_property(b->table, "memory@", "reg", memory, &v);
}

static int take_cmdline(void *arg, const void *value, uint32_t size)
{
	(void)size;
	*(const char **)arg = value;
	return 1;
}

static int take_uart(void *arg, const void *value, uint32_t size)
{
	(void)arg, (void)size;
	uart = (volatile uint32_t *)be64(value);
	(void)uart[PL011_FR]; /* where the host has the device, it hears that the guest runs */
	return 1;
}

struct boot_info cpu_boot(const void *tree)
{
	struct boot_info b = {"", each_memory, tree};
	each_property(tree, "serial@", "reg", take_uart, 0);
	each_property(tree, "chosen", "bootargs", take_cmdline, &b.cmdline);
	return b;
}

void guest_main(const void *boot_data);

/* Entered by start_arm64.S. The scenario "halt" is over before anything else begins, as on x86_64. */
void cpu_main(const void *tree)
{
	const char *words = cpu_boot(tree).cmdline;
	for (; *words; words++)
		if (begins(words, "demo.scenario=halt"))
			for (;;)
				__asm__ volatile("wfi");
	guest_main(tree);
}
