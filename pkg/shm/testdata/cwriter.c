/* The embedded guest's writer as a program, so that its ring can be compared with the Go writer's.
 * stdin: u64 size, the region, then messages: u32 type, u32 length, payload. stdout: the region. */
#include <stdio.h>
#include <stdlib.h>

#include "ring.h"

static void get(void *to, size_t n)
{
	if (fread(to, 1, n, stdin) != n)
		exit(1);
}

int main(void)
{
	struct ring r;
	uint64_t size;
	uint32_t head[2];
	static uint8_t payload[1 << 20];
	get(&size, sizeof size);
	void *region = aligned_alloc(8, (size + 7) & ~(uint64_t)7);
	get(region, size);
	if (!ring_open(&r, region, size))
		return 2;
	while (fread(head, sizeof head, 1, stdin) == 1) {
		get(payload, head[1]);
		ring_write(&r, head[0], payload, head[1]);
	}
	return fwrite(region, 1, size, stdout) == size ? 0 : 3;
}
