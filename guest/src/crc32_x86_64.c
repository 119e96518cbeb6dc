#include "crc32.h"

/* Folding by carry-less multiplication: V. Gopal et al., "Fast CRC Computation for Generic
 * Polynomials Using PCLMULQDQ Instruction", Intel 2009. The constants are powers of x modulo the
 * polynomial, bit-reflected. This file alone is built with vector registers. */

typedef long long v2 __attribute__((vector_size(16)));
typedef unsigned v4 __attribute__((vector_size(16)));

static const v2 by_64_bytes = {0x154442bd4, 0x1c6e41596};
static const v2 by_16_bytes = {0x1751997d0, 0x0ccaa009e};
static const v2 to_64_bits = {0x163cd6124, 0};
static const v2 barrett = {0x1db710641, 0x1f7011641};
static const v4 low_words = {~0u, 0, ~0u, 0};

static v2 load(const uint8_t *p)
{
	v2 v;
	__builtin_memcpy(&v, p, sizeof v);
	return v;
}

static v2 fold(v2 sum, v2 by, v2 next)
{
	return __builtin_ia32_pclmulqdq128(sum, by, 0x00) ^ __builtin_ia32_pclmulqdq128(sum, by, 0x11) ^ next;
}

static v2 shift_right(v2 v, int bytes)
{
	return bytes == 8 ? (v2){v[1], 0} : (v2)(v4){((v4)v)[1], ((v4)v)[2], ((v4)v)[3], 0};
}

static int has_pclmul(void)
{
	static int known;
	if (!known) {
		uint32_t a = 1, b, c = 0, d;
		__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
		known = c & 1 << 1 ? 1 : -1;
	}
	return known > 0;
}

uint64_t crc32_fold(uint32_t *crc, const uint8_t *data, uint64_t len)
{
	if (len < 64 || !has_pclmul())
		return 0;
	const uint8_t *p = data;
	v2 a = load(p) ^ (v2){*crc, 0}, b = load(p + 16), c = load(p + 32), d = load(p + 48);
	for (p += 64, len -= 64; len >= 64; p += 64, len -= 64) {
		a = fold(a, by_64_bytes, load(p));
		b = fold(b, by_64_bytes, load(p + 16));
		c = fold(c, by_64_bytes, load(p + 32));
		d = fold(d, by_64_bytes, load(p + 48));
	}
	a = fold(a, by_16_bytes, b);
	a = fold(a, by_16_bytes, c);
	a = fold(a, by_16_bytes, d);
	for (; len >= 16; p += 16, len -= 16)
		a = fold(a, by_16_bytes, load(p));

	/* 128 bits to 64, to 32: the paper's sections on reduction. */
	a = shift_right(a, 8) ^ __builtin_ia32_pclmulqdq128(a, by_16_bytes, 0x10);
	a = shift_right(a, 4) ^ __builtin_ia32_pclmulqdq128(a & (v2)low_words, to_64_bits, 0x00);
	v2 q = __builtin_ia32_pclmulqdq128(a & (v2)low_words, barrett, 0x10);
	a ^= __builtin_ia32_pclmulqdq128(q & (v2)low_words, barrett, 0x00);
	*crc = ((v4)a)[1];
	return (uint64_t)(p - data);
}
