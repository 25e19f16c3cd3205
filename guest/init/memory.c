// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The memory of this process, and what becomes of it while a device works on it. To other commands it is the address
 * space "process". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "init.h"

#define MOST_PAGES (UINT64_C(1) << 18)
#define MOST_FILES 8

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

/* The files behind memory, each with where it begins; -1: a free place. */
static struct {
	uint64_t address;
	int fd;
} files[MOST_FILES] = { [0 ... MOST_FILES - 1] = { 0, -1 } };

/* In the order of madvise(2); distributions' headers are older than some. */
static const struct {
	const char *name;
	int value;
} advices[] = {
	{ "dontneed", 4 }, { "free", 8 }, { "hugepage", 14 }, { "nohugepage", 15 }, { "pageout", 21 },
	{ "populate", 23 }, { "collapse", 25 },
};

#define COUNT(array) (sizeof array / sizeof *array)

static uint64_t pages_of(uint64_t address, uint64_t length)
{
	return (address % PAGE + length + PAGE - 1) / PAGE;
}

uint8_t *process_memory(uint64_t address, uint64_t length)
{
	static unsigned char resident[MOST_PAGES];
	uint64_t pages = pages_of(address, length);
	void *start = (void *)(uintptr_t)(address / PAGE * PAGE);

	/* The call fails where anything is not mapped. */
	if (pages > MOST_PAGES || mincore(start, pages * PAGE, resident)) {
		fail("no memory of this process at %#llx", (unsigned long long)address);
		return NULL;
	}
	return (uint8_t *)(uintptr_t)address;
}

/* The two numbers that most commands begin with; answers when they are none. */
static bool range(struct words words, void **start, uint64_t *length)
{
	uint64_t address;

	if (!number(words.word[0], &address) || !number(words.word[1], length))
		return false;
	*start = (void *)(uintptr_t)address;
	return true;
}

/* The file behind the memory at an address, or a free place for -1. */
static int file_at(uint64_t address, bool is_free)
{
	for (int i = 0; i < MOST_FILES; i++)
		if (is_free ? files[i].fd < 0 : files[i].fd >= 0 && files[i].address == address)
			return i;
	return -1;
}

/* What mmap() wants for a kind of memory; a file for one that has it. Answers when there is no such kind. */
static bool flags_of(const char *kind, uint64_t length, int *flags, int *file)
{
	*file = -1;
	if (!strcmp(kind, "private")) {
		*flags = MAP_PRIVATE | MAP_ANONYMOUS;
	} else if (!strcmp(kind, "shared")) {
		*flags = MAP_SHARED | MAP_ANONYMOUS;
	} else if (!strcmp(kind, "hugetlb-2m")) {
		*flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 21 << MAP_HUGE_SHIFT;
	} else if (!strcmp(kind, "hugetlb-1g")) {
		*flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 30 << MAP_HUGE_SHIFT;
	} else {
		bool in_memory = !strcmp(kind, "file");
		*flags = MAP_SHARED;
		*file = in_memory ? memfd_create("memory", MFD_CLOEXEC) : open(kind, O_RDWR | O_CLOEXEC);
		if (*file < 0 || (in_memory && ftruncate(*file, length))) {
			fail_errno("%s", kind);
			return false;
		}
	}
	return true;
}

/* New memory at an address where there is none. */
static void add_memory(struct words words)
{
	int flags, file;
	uint64_t length;
	void *start;

	if (!range(words, &start, &length) || !flags_of(words.word[2], length, &flags, &file))
		return;
	int place = file_at(0, true);
	if (place < 0)
		return fail("too many files");
	void *memory = mmap(start, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, file, 0);
	if (memory == MAP_FAILED) {
		int reason = errno;
		close(file);
		errno = reason;
		return fail_errno("mmap at %p", start);
	}
	files[place].address = (uintptr_t)memory;
	files[place].fd = file;
	ok("%s", "");
}

static void drop(struct words words)
{
	uint64_t length;
	void *start;

	if (!range(words, &start, &length))
		return;
	if (munmap(start, length))
		return fail_errno("munmap");
	int place = file_at((uintptr_t)start, false);
	if (place >= 0) {
		close(files[place].fd);
		files[place].fd = -1;
	}
	ok("%s", "");
}

static void protect(struct words words)
{
	static const char letters[] = "rwx";
	const char *access = words.word[2];
	int protection = PROT_NONE;
	uint64_t length;
	void *start;

	if (!range(words, &start, &length))
		return;
	/* PROT_READ, PROT_WRITE and PROT_EXEC are 1, 2 and 4. */
	for (int i = 0; letters[i] && strcmp(access, "none"); i++)
		protection |= strchr(access, letters[i]) ? 1 << i : 0;
	if (mprotect(start, length, protection))
		return fail_errno("mprotect");
	ok("%s", "");
}

static void advise(struct words words)
{
	uint64_t length;
	void *start;

	if (!range(words, &start, &length))
		return;
	for (size_t i = 0; i < COUNT(advices); i++) {
		if (strcmp(words.word[2], advices[i].name))
			continue;
		if (madvise(start, length, advices[i].value))
			return fail_errno("madvise");
		return ok("%s", "");
	}
	fail("no advice %s", words.word[2]);
}

static void move(struct words words)
{
	uint64_t length, to;
	void *start;

	if (!range(words, &start, &length) || !number(words.word[2], &to))
		return;
	if (mremap(start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(uintptr_t)to) == MAP_FAILED)
		return fail_errno("mremap");
	ok("%s", "");
}

void fill_pattern(uint8_t *memory, uint64_t length, uint64_t seed)
{
	for (uint64_t i = 0; i < length; i++)
		memory[i] = pattern(seed, i);
}

static void fill(struct words words)
{
	uint64_t address, length, seed;

	if (!number(words.word[0], &address) || !number(words.word[1], &length) || !number(words.word[2], &seed))
		return;
	uint8_t *memory = process_memory(address, length);
	if (!memory)
		return;
	fill_pattern(memory, length, seed);
	ok("%s", "");
}

static void zeros(struct words words)
{
	uint64_t address, length;

	if (!number(words.word[0], &address) || !number(words.word[1], &length))
		return;
	uint8_t *memory = process_memory(address, length);
	if (!memory)
		return;
	for (uint64_t i = 0; i < length; i++)
		if (memory[i])
			return fail("byte %llu is %#x", (unsigned long long)i, memory[i]);
	ok("%s", "");
}

/* Gives the file behind the memory at an address another length. */
static void truncate_file(struct words words)
{
	uint64_t length;
	void *start;

	if (!range(words, &start, &length))
		return;
	int place = file_at((uintptr_t)start, false);
	if (place < 0)
		return fail("no file at %s", words.word[0]);
	if (ftruncate(files[place].fd, length))
		return fail_errno("ftruncate");
	ok("%s", "");
}

/* Writes what was changed in memory to the file behind it. */
static void sync_file(struct words words)
{
	uint64_t length;
	void *start;

	if (!range(words, &start, &length))
		return;
	if (msync(start, length, MS_SYNC))
		return fail_errno("msync");
	ok("%s", "");
}

/* How much of the mapping at an address is in large pages, in KiB. */
static unsigned large_pages(uint64_t address)
{
	unsigned found = 0, kib;
	uint64_t start, end;
	bool is_inside = false;
	char line[512];
	FILE *smaps = fopen("/proc/self/smaps", "re");

	while (smaps && fgets(line, sizeof line, smaps)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2)
			is_inside = address >= start && address < end;
		else if (is_inside && (sscanf(line, "AnonHugePages: %u", &kib) == 1 ||
				       sscanf(line, "Private_Hugetlb: %u", &kib) == 1))
			found += kib;
	}
	if (smaps)
		fclose(smaps);
	return found;
}

/* Where the pages of a range are. */
static void show_pages(struct words words)
{
	unsigned present = 0, swapped = 0;
	uint64_t address, length;

	if (!number(words.word[0], &address) || !number(words.word[1], &length))
		return;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fail_errno("pagemap");
	for (uint64_t i = 0; i < pages_of(address, length); i++) {
		uint64_t entry = 0;
		if (pread(fd, &entry, sizeof entry, (address / PAGE + i) * sizeof entry) != sizeof entry) {
			close(fd);
			return fail_errno("pagemap");
		}
		present += entry >> 63;
		swapped += entry >> 62 & 1;
	}
	close(fd);
	ok("present=%u swapped=%u large=%u", present, swapped, large_pages(address));
}

const struct command memory_commands[] = {
	{ "memory", 3, 3, add_memory },
	{ "drop", 2, 2, drop },
	{ "protect", 3, 3, protect },
	{ "advise", 3, 3, advise },
	{ "move", 3, 3, move },
	{ "fill", 3, 3, fill },
	{ "zeros", 2, 2, zeros },
	{ "truncate", 2, 2, truncate_file },
	{ "sync", 2, 2, sync_file },
	{ "pages", 2, 2, show_pages },
	{ NULL, 0, 0, NULL },
};
