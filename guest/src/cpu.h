/* What the embedded guest needs of its processor; one implementation an architecture. */
#ifndef CPU_H
#define CPU_H

#include <stdint.h>

/* Prints len bytes on the machine's first serial port. */
void cpu_console(const char *text, uint64_t len);

/* Rings the host's doorbell. Whoever hears it sees what was stored before; it may not be heard at all. */
void cpu_bell(void);

/* Resets the machine. */
void cpu_reset(void) __attribute__((noreturn));

/* Ends the machine by a fault that nothing handles. */
void cpu_triple_fault(void) __attribute__((noreturn));

/* Makes size bytes of guest-physical memory at base readable and writable there. */
void cpu_map(uint64_t base, uint64_t size);

/* Says what the clock's frequency is, where the machine itself does not; 0: it does. */
void cpu_clock_khz(uint64_t khz);

/* Nanoseconds since some moment before. */
uint64_t cpu_nanoseconds(void);

/* Lets the other hardware thread go first in a loop that waits. */
void cpu_relax(void);

/* What the boot loader said. */
struct boot_info {
	const char *cmdline;
	/* Calls fn for each range of the memory map until it returns non-zero, which is returned. */
	int (*each_range)(const struct boot_info *, int (*fn)(void *, uint64_t start, uint64_t size), void *);
	const void *table;
};

/* Reads the boot loader's data; called once, before anything else here. */
struct boot_info cpu_boot(const void *boot_data);

#endif
