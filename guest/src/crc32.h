/* CRC-32 as in IEEE 802.3, which the ring's messages carry. */
#ifndef CRC32_H
#define CRC32_H

#include <stdint.h>

/* The CRC-32 of len bytes. */
uint32_t crc32(const void *data, uint64_t len);

/* The processor's own way: takes the CRC register over a part of the data's beginning, as much as
 * it is good for, and returns how many bytes that was; 0 where there is no such way. */
uint64_t crc32_fold(uint32_t *crc, const uint8_t *data, uint64_t len);

#endif
