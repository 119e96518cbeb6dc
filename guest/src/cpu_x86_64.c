#include "cpu.h"

enum { COM1 = 0x3f8, DOORBELL = 0xe9, I8042_COMMAND = 0x64, I8042_RESET = 0xfe };

static inline void out8(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

void cpu_console(const char *text, uint64_t len)
{
	__asm__ volatile("rep outsb" : "+S"(text), "+c"(len) : "d"((uint16_t)COM1) : "memory");
}

/* Stores are seen in the order they were made, and OUT waits until all before it are: SDM volume 1, "Ordering
 * I/O", and volume 3, "Strengthening or Weakening the Memory-Ordering Model". So the compiler alone has to keep
 * the order here. On arm64, whose ring is Device memory, a DMB of the outer shareable domain would have to
 * stand between its last store and the one that rings. */
void cpu_bell(void)
{
	__asm__ volatile("" : : : "memory");
	out8(DOORBELL, 0);
}

typedef uint64_t word __attribute__((aligned(1), may_alias));

/* The compiler calls these for copies and initial values that it does not do in line. */
void *memcpy(void *to, const void *from, uint64_t len)
{
	uint8_t *d = to;
	const uint8_t *s = from;
	if (len <= 64) /* where starting a string instruction costs more than the copy */
		for (; len >= 8; len -= 8, d += 8, s += 8)
			*(volatile word *)d = *(const word *)s;
	if (len)
		__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(len) : : "memory");
	return to;
}

void *memset(void *to, int v, uint64_t len)
{
	void *d = to;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(len) : "a"(v) : "memory");
	return to;
}

void cpu_reset(void)
{
	for (;;)
		out8(I8042_COMMAND, I8042_RESET);
}

/* The IDT is empty, so the first fault cannot be delivered, nor the fault about that. */
void cpu_triple_fault(void)
{
	for (;;)
		__asm__ volatile("ud2");
}

void cpu_relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}

/* Page tables: SDM volume 3, section 4.5. Ring 3 may write them: they lie in user pages, and an
 * entry that was not present needs no flush. */
enum { PRESENT_WRITE_USER = 7, LARGE = 0x80, LARGE_SIZE = 2 << 20 };

extern uint64_t pml4[512];
static uint64_t spare[5][512] __attribute__((aligned(4096))); /* at most 1 GiB: 2 PDPTs, 3 PDs */
static unsigned spares;

static uint64_t *table_at(uint64_t *entry)
{
	if (!(*entry & 1)) {
		if (spares == sizeof spare / sizeof spare[0])
			cpu_reset();
		*entry = (uint64_t)spare[spares++] | PRESENT_WRITE_USER;
	}
	return (uint64_t *)(*entry & 0x000ffffffffff000);
}

void cpu_map(uint64_t base, uint64_t size)
{
	for (uint64_t a = base & ~(uint64_t)(LARGE_SIZE - 1); a < base + size; a += LARGE_SIZE) {
		uint64_t *pdpt = table_at(&pml4[a >> 39 & 511]);
		uint64_t *pd = table_at(&pdpt[a >> 30 & 511]);
		if (!(pd[a >> 21 & 511] & 1))
			pd[a >> 21 & 511] = a | LARGE | PRESENT_WRITE_USER;
	}
	__asm__ volatile("" : : : "memory");
}

extern uint32_t tsc_khz; /* of the hypervisor; 0 if it has not said */
static uint64_t khz;

void cpu_clock_khz(uint64_t given) { khz = given; }

uint64_t cpu_nanoseconds(void)
{
	if (!khz)
		khz = tsc_khz ? tsc_khz : 1000000;
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	uint64_t ticks = (uint64_t)high << 32 | low;
	return ticks / khz * 1000000 + ticks % khz * 1000000 / khz;
}

/* boot_params: Linux boot protocol, "The zero page". */
enum { OFF_E820_COUNT = 0x1e8, OFF_CMDLINE = 0x228, OFF_E820 = 0x2d0 };

struct e820_entry {
	uint64_t start, size;
	uint32_t type;
} __attribute__((packed));

static int each_e820(const struct boot_info *b, int (*fn)(void *, uint64_t, uint64_t), void *arg)
{
	const uint8_t *zero_page = b->table;
	const struct e820_entry *e = (const void *)(zero_page + OFF_E820);
	for (int i = 0; i < zero_page[OFF_E820_COUNT]; i++) {
		int r = fn(arg, e[i].start, e[i].size);
		if (r)
			return r;
	}
	return 0;
}

struct boot_info cpu_boot(const void *boot_params)
{
	const uint8_t *zero_page = boot_params;
	uint32_t cmdline = *(const uint32_t *)(zero_page + OFF_CMDLINE);
	return (struct boot_info){(const char *)(uint64_t)cmdline, each_e820, zero_page};
}
