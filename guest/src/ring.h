/* The guest's side of the message ring, written from the format's description and not from the
 * host's code: each checks the other. */
#ifndef RING_H
#define RING_H

#include <stdint.h>

enum {
	RING_HEADER = 40,	   /* bytes before the data */
	MESSAGE_HEADER = 16,	   /* bytes before a payload */
	RING_MAGIC = 0x53544d52,   /* "STMR" */

	STIM = 0x5354494d,
	SCST = 0x53435354,
	SCEN = 0x5343454e,
	EXIT = 0x45584954,
	TEST = 0x54455354,
	SCDX = 0x53434458,
	CRSH = 0x43525348,
	PMET = 0x504d4554,
	RAWO = 0x5241574f,
};

struct ring_header {
	uint32_t magic, version, capacity;
	uint8_t dump, stall, slot[2];
	uint64_t write_ptr, read_ptr, drops;
};

struct ring {
	struct ring_header *header;
	uint8_t *data;
	uint64_t capacity;
};

struct stimulus {
	uint32_t elapsed_ms;
	uint16_t step_index, op_count;
	uint32_t op_kinds;
	uint16_t cgroup_count, worker_count;
	uint64_t total_iterations;
};

/* Takes the ring in the size bytes at region; 0 where there is none. */
int ring_open(struct ring *r, void *region, uint64_t size);

/* Writes one message, or counts it as dropped and returns 0. */
int ring_write(struct ring *r, uint32_t type, const void *payload, uint32_t len);

/* Whether a message of len bytes finds room. */
int ring_has_room(const struct ring *r, uint32_t len);

#endif
