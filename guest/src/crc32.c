#include "crc32.h"

/* Eight bytes a step, by eight tables: the CRC of a byte that is followed by 0 to 7 zero bytes. */
static uint32_t table[8][256];

static void make_tables(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int bit = 0; bit < 8; bit++)
			c = c >> 1 ^ (c & 1 ? 0xedb88320 : 0);
		table[0][i] = c;
	}
	for (int t = 1; t < 8; t++)
		for (uint32_t i = 0; i < 256; i++)
			table[t][i] = table[t - 1][i] >> 8 ^ table[0][table[t - 1][i] & 255];
}

uint32_t crc32(const void *data, uint64_t len)
{
	const uint8_t *p = data;
	uint32_t c = ~0u;
	if (!table[0][1])
		make_tables();
	uint64_t folded = crc32_fold(&c, p, len);
	for (p += folded, len -= folded; len >= 8; len -= 8, p += 8) {
		uint64_t v;
		__builtin_memcpy(&v, p, 8);
		v ^= c;
		c = 0;
		for (int i = 0; i < 8; i++)
			c ^= table[7 - i][v >> 8 * i & 255];
	}
	for (; len; len--)
		c = c >> 8 ^ table[0][(c ^ *p++) & 255];
	return ~c;
}
