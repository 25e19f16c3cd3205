// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The VFIO commands: devices, address spaces and the buffers in them, each under the name that the tests gave it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "init.h"
#include "vfio.h"

#define MOST 32
#define MOST_RANGES 64

struct buffer {
	struct buffer *next;
	uint64_t iova, length;
	uint8_t *memory;
};

static struct {
	char name[32];
	struct device device;
} devices[MOST];

static struct named_space {
	char name[32];
	struct space space;
	struct buffer *buffers;
} spaces[MOST];

static void fail_step(void)
{
	fail_errno("%s", vfio_step());
}

/* The device of that name, or a free place for the name ""; answers when there is none. */
static struct device *find_device(const char *name, char **name_place)
{
	for (int i = 0; i < MOST; i++) {
		if (strcmp(devices[i].name, name))
			continue;
		if (name_place)
			*name_place = devices[i].name;
		return &devices[i].device;
	}
	fail("no device \"%s\"", name);
	return NULL;
}

static struct named_space *lookup_space(const char *name)
{
	for (int i = 0; i < MOST; i++)
		if (!strcmp(spaces[i].name, name))
			return &spaces[i];
	return NULL;
}

/* The same; answers when there is none. */
static struct named_space *find_space(const char *name)
{
	struct named_space *space = lookup_space(name);

	if (!space)
		fail("no address space \"%s\"", name);
	return space;
}

struct device *device_named(const char *name)
{
	return find_device(name, NULL);
}

const char *device_address(uint32_t id)
{
	for (int i = 0; i < MOST; i++)
		if (devices[i].name[0] && devices[i].device.id == id)
			return devices[i].device.address;
	return "unknown";
}

struct space *space_named(const char *name)
{
	struct named_space *space = find_space(name);

	return space ? &space->space : NULL;
}

static void open_device(struct words words)
{
	char *name;
	struct device *device = find_device("", &name);

	if (!device)
		return;
	if (!device_open(device, pci_address(words.word[1])))
		return fail_step();
	snprintf(name, sizeof devices->name, "%s", words.word[0]);
	ok("%s", device->group < 0 ? "device file" : "group");
}

bool keep_device(const char *name, const struct device *device)
{
	for (int i = 0; i < MOST; i++) {
		if (devices[i].name[0])
			continue;
		snprintf(devices[i].name, sizeof devices[i].name, "%s", name);
		devices[i].device = *device;
		return true;
	}
	errno = EMFILE;
	return false;
}

static void close_device(struct words words)
{
	char *name;
	struct device *device = find_device(words.word[0], &name);

	if (!device)
		return;
	device_close(device);
	*name = 0;
	ok("%s", "");
}

static void open_space(struct words words)
{
	struct named_space *space = find_space("");

	if (!space)
		return;
	if (!space_open(&space->space))
		return fail_step();
	snprintf(space->name, sizeof space->name, "%s", words.word[0]);
	ok("%s", "");
}

static void free_buffers(struct named_space *space, uint64_t iova, uint64_t last)
{
	for (struct buffer **link = &space->buffers; *link;) {
		struct buffer *buffer = *link;
		if (buffer->iova < iova || buffer->iova > last) {
			link = &buffer->next;
			continue;
		}
		*link = buffer->next;
		munmap(buffer->memory, buffer->length);
		free(buffer);
	}
}

static void close_space(struct words words)
{
	struct named_space *space = find_space(words.word[0]);

	if (!space)
		return;
	space_close(&space->space);
	free_buffers(space, 0, UINT64_MAX);
	space->name[0] = 0;
	ok("%s", "");
}

static void attach(struct words words)
{
	struct device *device = find_device(words.word[0], NULL);
	struct named_space *space = device ? find_space(words.word[1]) : NULL;

	if (!space)
		return;
	if (!device_attach(device, &space->space))
		return fail_step();
	ok("%s", "");
}

static void detach(struct words words)
{
	struct device *device = find_device(words.word[0], NULL);

	if (!device)
		return;
	if (!device_detach(device))
		return fail_step();
	ok("%s", "");
}

static void show_ranges(struct words words)
{
	struct range ranges[MOST_RANGES];
	struct named_space *space = find_space(words.word[0]);

	if (!space)
		return;
	int count = space_ranges(&space->space, ranges, MOST_RANGES);
	if (count < 0)
		return fail_step();
	for (int i = 0; i < count; i++)
		data("%#llx %#llx", (unsigned long long)ranges[i].start, (unsigned long long)ranges[i].last);
	ok("%s", "");
}

uint8_t pattern(uint64_t seed, uint64_t i)
{
	return seed + 31 * i + 17 * (i >> 8);
}

/* A new buffer with a pattern in it, in no address space yet; NULL and errno without memory. */
static struct buffer *new_buffer(uint64_t iova, uint64_t length, uint64_t seed)
{
	struct buffer *buffer = malloc(sizeof *buffer);
	uint8_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!buffer || memory == MAP_FAILED) {
		free(buffer);
		return NULL;
	}
	fill_pattern(memory, length, seed);
	*buffer = (struct buffer){ NULL, iova, length, memory };
	return buffer;
}

static void keep_buffer(struct named_space *space, struct buffer *buffer)
{
	buffer->next = space->buffers;
	space->buffers = buffer;
}

/* Maps a buffer that is in no address space yet, and keeps it, or frees it; answers. */
static void map_buffer(struct named_space *space, struct buffer *buffer, const char *access)
{
	bool read = strchr(access, 'r'), write = strchr(access, 'w');

	if (!space_map(&space->space, buffer->iova, buffer->memory, buffer->length, read, write)) {
		int reason = errno;
		munmap(buffer->memory, buffer->length);
		free(buffer);
		errno = reason;
		return fail_step();
	}
	keep_buffer(space, buffer);
	ok("%s", "");
}

static void map(struct words words)
{
	struct named_space *space = find_space(words.word[0]);
	uint64_t iova, length, seed;

	if (!space || !number(words.word[1], &iova) || !number(words.word[2], &length) ||
	    !number(words.word[4], &seed))
		return;
	struct buffer *buffer = new_buffer(iova, length, seed);
	if (!buffer)
		return fail_errno("a buffer of %llu bytes", (unsigned long long)length);
	map_buffer(space, buffer, words.word[3]);
}

/* Maps physical addresses, whether memory is there or not. */
static void map_physical(struct words words)
{
	struct named_space *space = find_space(words.word[0]);
	uint64_t iova, length, address;

	if (!space || !number(words.word[1], &iova) || !number(words.word[2], &length) ||
	    !number(words.word[4], &address))
		return;
	int fd = open("/dev/mem", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fail_errno("/dev/mem");
	struct buffer *buffer = malloc(sizeof *buffer);
	uint8_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, address);
	int reason = errno;
	close(fd);
	if (!buffer || memory == MAP_FAILED) {
		free(buffer);
		errno = reason;
		return fail_errno("/dev/mem at %#llx", (unsigned long long)address);
	}
	*buffer = (struct buffer){ NULL, iova, length, memory };
	map_buffer(space, buffer, words.word[3]);
}

static void add_buffer(struct words words)
{
	struct named_space *space = find_space(words.word[0]);
	uint64_t iova, length, seed;

	if (!space || !number(words.word[1], &iova) || !number(words.word[2], &length) ||
	    !number(words.word[3], &seed))
		return;
	struct buffer *buffer = new_buffer(iova, length, seed);
	if (!buffer)
		return fail_errno("a buffer of %llu bytes", (unsigned long long)length);
	keep_buffer(space, buffer);
	ok("%s", "");
}

static void unmap(struct words words)
{
	struct named_space *space = find_space(words.word[0]);
	uint64_t iova, length;

	if (!space || !number(words.word[1], &iova) || !number(words.word[2], &length))
		return;
	if (!space_unmap(&space->space, iova, length))
		return fail_step();
	free_buffers(space, iova, iova + length - 1);
	ok("%s", "");
}

/* The memory behind [iova, iova + length), or NULL when that does not lie in one buffer. */
static uint8_t *find_memory(const struct named_space *space, uint64_t iova, uint64_t length)
{
	for (struct buffer *b = space->buffers; b; b = b->next)
		if (iova >= b->iova && iova - b->iova < b->length && length <= b->length - (iova - b->iova))
			return b->memory + (iova - b->iova);
	return NULL;
}

uint8_t *memory_at(const char *name, uint64_t iova, uint64_t length)
{
	if (!strcmp(name, "process"))
		return process_memory(iova, length);
	struct named_space *space = find_space(name);
	uint8_t *memory = space ? find_memory(space, iova, length) : NULL;

	if (space && !memory)
		fail("no buffer at %#llx", (unsigned long long)iova);
	return memory;
}

bool map_from_buffer(const char *name, uint64_t iova, uint64_t length)
{
	struct named_space *space = lookup_space(name);
	uint8_t *memory = space ? find_memory(space, iova, length) : NULL;

	if (!memory) {
		errno = EFAULT;
		return false;
	}
	return space_map(&space->space, iova, memory, length, true, true);
}

static void verify(struct words words)
{
	uint64_t iova, length, seed;

	if (!number(words.word[1], &iova) || !number(words.word[2], &length) || !number(words.word[3], &seed))
		return;
	uint8_t *memory = memory_at(words.word[0], iova, length);
	if (!memory)
		return;
	for (uint64_t i = 0; i < length; i++)
		if (memory[i] != pattern(seed, i))
			return fail("byte %llu is %#x, not %#x", (unsigned long long)i, memory[i], pattern(seed, i));
	ok("%s", "");
}

static void peek(struct words words)
{
	uint64_t iova, length;
	char text[2048 + 1] = "";

	if (!number(words.word[1], &iova) || !number(words.word[2], &length))
		return;
	if (length > sizeof text / 2)
		return fail("%zu bytes at most", sizeof text / 2);
	uint8_t *memory = memory_at(words.word[0], iova, length);
	if (!memory)
		return;
	for (uint64_t i = 0; i < length; i++)
		sprintf(text + 2 * i, "%02x", memory[i]);
	ok("%s", text);
}

static void poke(struct words words)
{
	const char *text = words.word[2];
	uint64_t iova, length = strlen(text) / 2;

	if (!number(words.word[1], &iova))
		return;
	uint8_t *memory = memory_at(words.word[0], iova, length);
	if (!memory)
		return;
	for (uint64_t i = 0; i < length; i++) {
		unsigned value;
		if (sscanf(text + 2 * i, "%2x", &value) != 1)
			return fail("%s is not hexadecimal", text);
		memory[i] = value;
	}
	ok("%s", "");
}

const struct command vfio_commands[] = {
	{ "open", 2, 2, open_device },
	{ "close", 1, 1, close_device },
	{ "ioas", 1, 1, open_space },
	{ "ioas-free", 1, 1, close_space },
	{ "attach", 2, 2, attach },
	{ "detach", 1, 1, detach },
	{ "ranges", 1, 1, show_ranges },
	{ "map", 5, 5, map },
	{ "map-physical", 5, 5, map_physical },
	{ "buffer", 4, 4, add_buffer },
	{ "verify", 4, 4, verify },
	{ "peek", 3, 3, peek },
	{ "poke", 3, 3, poke },
	{ "unmap", 3, 3, unmap },
	{ NULL, 0, 0, NULL },
};
