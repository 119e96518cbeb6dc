#include "ring.h"

#include "crc32.h"

_Static_assert(sizeof(struct ring_header) == RING_HEADER, "the format's header is 40 bytes");
_Static_assert(sizeof(struct stimulus) == 24, "the format's stimulus is 24 bytes");

int ring_open(struct ring *r, void *region, uint64_t size)
{
	r->header = region;
	r->data = (uint8_t *)region + RING_HEADER;
	if (size < RING_HEADER + MESSAGE_HEADER || r->header->magic != RING_MAGIC)
		return 0;
	r->capacity = r->header->capacity;
	return r->capacity >= MESSAGE_HEADER && r->capacity <= size - RING_HEADER;
}

static uint64_t room(const struct ring *r)
{
	uint64_t read = __atomic_load_n(&r->header->read_ptr, __ATOMIC_ACQUIRE);
	uint64_t used = r->header->write_ptr - read;
	return used <= r->capacity ? r->capacity - used : 0;
}

int ring_has_room(const struct ring *r, uint32_t len)
{
	return room(r) >= MESSAGE_HEADER + (uint64_t)len;
}

#ifdef __aarch64__
/* Stores bytes to the ring, which a guest's process may have as Device memory: that takes naturally aligned accesses
 * of at most 8 bytes. Arm Architecture Reference Manual, B2.10.2. */
static void store(uint8_t *to, const uint8_t *from, uint64_t len)
{
	typedef uint64_t word __attribute__((may_alias));
	typedef uint64_t loose_word __attribute__((may_alias, aligned(1)));
	for (; len && (uint64_t)to % 8; len--)
		*(volatile uint8_t *)to++ = *from++;
	for (; len >= 8; len -= 8, to += 8, from += 8)
		*(volatile word *)to = *(const loose_word *)from;
	for (; len; len--)
		*(volatile uint8_t *)to++ = *from++;
}
#else
#define store __builtin_memcpy
#endif

/* Copies len bytes to a position, over the end of the data and on at its start. */
static void put(struct ring *r, uint64_t position, const uint8_t *from, uint64_t len)
{
	uint64_t at = position % r->capacity;
	uint64_t first = r->capacity - at < len ? r->capacity - at : len;
	store(r->data + at, from, first);
	if (first < len)
		store(r->data, from + first, len - first);
}

int ring_write(struct ring *r, uint32_t type, const void *payload, uint32_t len)
{
	if (!ring_has_room(r, len)) {
		if (r->header->drops != UINT64_MAX)
			__atomic_store_n(&r->header->drops, r->header->drops + 1, __ATOMIC_RELAXED);
		return 0;
	}
	uint64_t position = r->header->write_ptr;
	uint32_t head[4] = {type, len, crc32(payload, len), 0};
	put(r, position, (const uint8_t *)head, sizeof head);
	put(r, position + sizeof head, payload, len);
	__atomic_store_n(&r->header->write_ptr, position + sizeof head + len, __ATOMIC_RELEASE);
	return 1;
}
