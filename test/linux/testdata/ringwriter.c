/* PID 1 of a guest whose kernel has the ring as Device memory for its processes: maps it through /dev/mem, and writes
 * as many messages as its argument says, and EXIT. What they are is ring_test.go's. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ring.h"

enum { PATTERN = 4096, LONGEST = 300 };

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
	return *state;
}

static uint64_t number(const char *cmdline, const char *name)
{
	const char *at = strstr(cmdline, name);
	return at ? strtoull(at + strlen(name), 0, 0) : 0;
}

int main(int argc, char **argv)
{
	static char cmdline[4096];
	static uint8_t pattern[PATTERN];
	struct ring ring;
	mkdir("/proc", 0755), mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, 0), mount("dev", "/dev", "devtmpfs", 0, 0);
	int fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, cmdline, sizeof cmdline - 1) <= 0)
		return perror("/proc/cmdline"), 1;
	uint64_t base = number(cmdline, "KTSTR_SHM_BASE="), size = number(cmdline, "KTSTR_SHM_SIZE=");
	if ((fd = open("/dev/mem", O_RDWR)) < 0)
		return perror("/dev/mem"), 1;
	void *mem = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)base);
	if (mem == MAP_FAILED || !ring_open(&ring, mem, size))
		return perror("the ring"), 1;
	for (int i = 0; i < PATTERN; i++)
		pattern[i] = (uint8_t)(i * 7 + (i >> 8));
	uint64_t state = 1;
	for (long long left = argc > 1 ? atoll(argv[1]) : 0; left > 0; left--) {
		uint64_t r = next(&state);
		uint32_t len = r % (LONGEST + 1), at = (r >> 32) % (PATTERN - LONGEST);
		while (!ring_has_room(&ring, len))
			usleep(100);
		ring_write(&ring, RAWO, pattern + at, len);
	}
	int32_t code = 0;
	while (!ring_has_room(&ring, sizeof code))
		usleep(100);
	ring_write(&ring, EXIT, &code, sizeof code);
	for (;;)
		pause();
}
