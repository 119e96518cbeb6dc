#include "crc32.h"

#include <arm_acle.h>

/* By the instructions for this polynomial: Arm Architecture Reference Manual, CRC32X. This file alone is built
 * with them. */

static int has_crc32(void)
{
	uint64_t isar0;
	__asm__("mrs %0, id_aa64isar0_el1" : "=r"(isar0));
	return (isar0 >> 16 & 15) != 0;
}

uint64_t crc32_fold(uint32_t *crc, const uint8_t *data, uint64_t len)
{
	if (len < 8 || !has_crc32())
		return 0;
	uint32_t c = *crc;
	const uint8_t *p = data;
	for (; len >= 8; p += 8, len -= 8) {
		uint64_t v;
		__builtin_memcpy(&v, p, sizeof v);
		c = __crc32d(c, v);
	}
	*crc = c;
	return (uint64_t)(p - data);
}
