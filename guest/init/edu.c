// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* QEMU's edu function (docs/specs/edu), opened through VFIO: it copies between memory and a buffer of its own. */
#include <errno.h>
#include <time.h>

#include "init.h"
#include "region.h"

#define BAR 0
#define DMA_SOURCE 0x80
#define DMA_DESTINATION 0x88
#define DMA_COUNT 0x90
#define DMA_COMMAND 0x98
#define START 1
#define TO_MEMORY 2
/* Its buffer, in its own addresses. */
#define BUFFER 0x40000

/* It is busy for 100 ms of its own time. */
#define MOST_SECONDS 60

static bool idle(struct device *device)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	uint64_t end = now_ns() + MOST_SECONDS * UINT64_C(1000000000);
	uint64_t command;

	while (region_read(device, BAR, DMA_COMMAND, &command, sizeof command)) {
		if (!(command & START))
			return true;
		if (now_ns() > end) {
			errno = ETIMEDOUT;
			return false;
		}
		nanosleep(&pause, NULL);
	}
	return false;
}

static void copy(struct device *device, uint64_t source, uint64_t destination, uint64_t length, uint64_t command)
{
	if (!device_enable(device, true) || !region_write(device, BAR, DMA_SOURCE, &source, sizeof source) ||
	    !region_write(device, BAR, DMA_DESTINATION, &destination, sizeof destination) ||
	    !region_write(device, BAR, DMA_COUNT, &length, sizeof length) ||
	    !region_write(device, BAR, DMA_COMMAND, &command, sizeof command) || !idle(device))
		return fail_errno("edu");
	ok("%s", "");
}

static void read_memory(struct words words)
{
	struct device *device = device_named(words.word[0]);
	uint64_t iova, length;

	if (device && number(words.word[1], &iova) && number(words.word[2], &length))
		copy(device, iova, BUFFER, length, START);
}

static void write_memory(struct words words)
{
	struct device *device = device_named(words.word[0]);
	uint64_t iova, length;

	if (device && number(words.word[1], &iova) && number(words.word[2], &length))
		copy(device, BUFFER, iova, length, START | TO_MEMORY);
}

const struct command edu_commands[] = {
	{ "edu-read", 3, 3, read_memory },
	{ "edu-write", 3, 3, write_memory },
	{ NULL, 0, 0, NULL },
};
