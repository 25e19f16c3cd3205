// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Block devices, past the page cache: every byte goes through the device. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/swap.h>
#include <unistd.h>

#include "init.h"

#define CHUNK (256 * 1024)
#define ALIGNMENT 4096

typedef bool step(int fd, uint8_t *chunk, size_t length, uint64_t done, uint64_t offset, uint64_t seed);

static bool write_chunk(int fd, uint8_t *chunk, size_t length, uint64_t done, uint64_t offset, uint64_t seed)
{
	for (size_t i = 0; i < length; i++)
		chunk[i] = pattern(seed, done + i);
	if (pwrite(fd, chunk, length, offset + done) == (ssize_t)length)
		return true;
	fail_errno("write at %llu", (unsigned long long)(offset + done));
	return false;
}

static bool check_chunk(int fd, uint8_t *chunk, size_t length, uint64_t done, uint64_t offset, uint64_t seed)
{
	if (pread(fd, chunk, length, offset + done) != (ssize_t)length) {
		fail_errno("read at %llu", (unsigned long long)(offset + done));
		return false;
	}
	for (size_t i = 0; i < length; i++)
		if (chunk[i] != pattern(seed, done + i)) {
			fail("byte %llu is %#x, not %#x", (unsigned long long)(done + i), chunk[i],
			     pattern(seed, done + i));
			return false;
		}
	return true;
}

static void go_through(struct words words, int flags, step *step)
{
	uint64_t offset, length, seed;
	char path[PATH_MAX];
	void *chunk;

	if (!number(words.word[1], &offset) || !number(words.word[2], &length) || !number(words.word[3], &seed))
		return;
	snprintf(path, sizeof path, "/dev/%s", words.word[0]);
	int fd = open(path, flags | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		return fail_errno("%s", path);
	errno = posix_memalign(&chunk, ALIGNMENT, CHUNK);
	if (errno) {
		close(fd);
		return fail_errno("memory");
	}
	bool good = true;
	for (uint64_t done = 0; good && done < length; done += CHUNK)
		good = step(fd, chunk, length - done < CHUNK ? length - done : CHUNK, done, offset, seed);
	free(chunk);
	if (good && fsync(fd)) {
		fail_errno("fsync");
		good = false;
	}
	close(fd);
	if (good)
		ok("%s", "");
}

static void write_disk(struct words words)
{
	go_through(words, O_WRONLY, write_chunk);
}

static void check_disk(struct words words)
{
	go_through(words, O_RDONLY, check_chunk);
}

/* Makes a swap area of a block device, and uses it. */
static void swap_on(struct words words)
{
	static struct {
		char boot[1024];
		uint32_t version, last_page, bad_pages;
		char unused[ALIGNMENT - 1024 - 3 * sizeof(uint32_t) - 10], magic[10];
	} header = { .version = 1, .magic = "SWAPSPACE2" };
	char path[PATH_MAX];
	uint64_t length;

	snprintf(path, sizeof path, "/dev/%s", words.word[0]);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fail_errno("%s", path);
	bool good = !ioctl(fd, BLKGETSIZE64, &length);
	header.last_page = good ? length / ALIGNMENT - 1 : 0;
	good = good && pwrite(fd, &header, sizeof header, 0) == sizeof header;
	close(fd);
	if (!good || swapon(path, 0))
		return fail_errno("swap on %s", path);
	ok("%s", "");
}

const struct command disk_commands[] = {
	{ "disk-write", 4, 4, write_disk },
	{ "disk-verify", 4, 4, check_disk },
	{ "swap-on", 1, 1, swap_on },
	{ NULL, 0, 0, NULL },
};
