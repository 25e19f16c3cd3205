// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * Races of this process with an engine that writes to a part of its memory, over and over.
 *
 * In each round the process takes something away from the engine, and uses what it has got back. From then on the engine
 * must not change it. The engine is seen to run before and after, so no round is for nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine.h"
#include "init.h"

#define COLLAPSE 25
/* What the process takes for itself in a round. */
#define FRESH_PAGES 16
#define FRESH_BYTE 0xa5
#define SECONDS 20

struct race {
	struct device *device;
	uint64_t engine;
	uint8_t *memory;
	uint64_t length;
	unsigned restarts;
};

static bool timed_out(uint64_t start)
{
	if (now_ns() - start < SECONDS * UINT64_C(1000000000))
		return false;
	errno = ETIMEDOUT;
	return true;
}

/* Whether the engine has ended its chain; -1 and errno. */
static int is_idle(struct race *race)
{
	uint32_t status;

	if (!engine_get(race->device, race->engine, ENGINE_STATUS, &status))
		return -1;
	return ENGINE_STATE(status) == ENGINE_IDLE;
}

/* Lets the engine carry out one descriptor at least from here on; starts it again if it has been refused something. */
static bool progress(struct race *race)
{
	uint64_t start = now_ns();
	uint32_t first, now;

	if (!engine_get(race->device, race->engine, ENGINE_COMPLETED, &first))
		return false;
	do {
		int idle = is_idle(race);
		if (idle < 0 || !engine_get(race->device, race->engine, ENGINE_COMPLETED, &now))
			return false;
		if (idle && !engine_set(race->device, race->engine, ENGINE_DOORBELL, 1))
			return false;
		race->restarts += idle;
		/* The one that was under way may have been done with the memory; the next one is not. */
	} while (now - first < 2 && !timed_out(start));
	return now - first >= 2;
}

/* Waits until the engine is refused what was taken away. */
static bool refused(struct race *race)
{
	uint64_t start = now_ns();
	int idle;

	do
		idle = is_idle(race);
	while (!idle && !timed_out(start));
	return idle > 0;
}

/* New memory of this process, where what was freed last is likely to be in. */
static uint8_t *take_fresh(void)
{
	uint8_t *fresh = mmap(NULL, FRESH_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (fresh == MAP_FAILED)
		return NULL;
	memset(fresh, FRESH_BYTE, FRESH_PAGES * PAGE);
	return fresh;
}

/* Whether nobody has changed it. */
static bool give_back(uint8_t *fresh)
{
	bool same = true;

	for (uint64_t i = 0; i < FRESH_PAGES * PAGE; i++)
		same = same && fresh[i] == FRESH_BYTE;
	munmap(fresh, FRESH_PAGES * PAGE);
	errno = EILSEQ;
	return same;
}

/* Takes new memory; then the engine goes on, or is refused. */
static bool with_fresh(struct race *race, bool (*then)(struct race *))
{
	uint8_t *fresh = take_fresh();

	if (!fresh)
		return false;
	bool good = then(race);
	int reason = errno;
	if (!give_back(fresh))
		return false;
	errno = reason;
	return good;
}

/* The pages go, and new ones come when the engine asks for them. */
static bool discard(struct race *race)
{
	return !madvise(race->memory, race->length, MADV_DONTNEED) && with_fresh(race, progress);
}

/* The memory goes, and the engine with it; then there is other memory in its place. */
static bool remap(struct race *race)
{
	if (munmap(race->memory, race->length))
		return false;
	bool good = with_fresh(race, refused);
	int reason = errno;
	void *again = mmap(race->memory, race->length, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	errno = good ? errno : reason;
	return good && again != MAP_FAILED;
}

/* Whether memory stays as it is until the engine is refused. */
static bool stays(struct race *race, const uint8_t *memory)
{
	uint8_t *copy = malloc(race->length);

	if (!copy)
		return false;
	memcpy(copy, memory, race->length);
	bool good = refused(race);
	int reason = errno;
	bool same = !memcmp(copy, memory, race->length);
	free(copy);
	errno = same ? reason : EILSEQ;
	return good && same;
}

/* The memory may be read only. */
static bool write_protect(struct race *race)
{
	return !mprotect(race->memory, race->length, PROT_READ) && stays(race, race->memory) &&
	       !mprotect(race->memory, race->length, PROT_READ | PROT_WRITE);
}

/* The memory is at another address, and then back. */
static bool go_away(struct race *race)
{
	uint8_t *there = mmap(NULL, race->length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (there == MAP_FAILED ||
	    mremap(race->memory, race->length, race->length, MREMAP_MAYMOVE | MREMAP_FIXED, there) == MAP_FAILED)
		return false;
	return stays(race, there) &&
	       mremap(there, race->length, race->length, MREMAP_MAYMOVE | MREMAP_FIXED, race->memory) != MAP_FAILED;
}

/* A large page becomes small ones, with a hole, and one again: pages of the table go and come. */
static bool split(struct race *race)
{
	uint8_t *middle = race->memory + race->length / 2;

	return !madvise(middle, PAGE, MADV_DONTNEED) && with_fresh(race, progress) &&
	       !madvise(race->memory, race->length, COLLAPSE) && with_fresh(race, progress);
}

static const struct {
	const char *name;
	bool (*round)(struct race *);
} kinds[] = {
	{ "discard", discard }, { "remap", remap }, { "protect", write_protect }, { "move", go_away }, { "split", split },
};

/* DEVICE ENGINE KIND ADDRESS LENGTH ROUNDS */
static void churn(struct words words)
{
	struct race race = { .restarts = 0 };
	bool (*round)(struct race *) = NULL;
	uint64_t address, rounds;

	race.device = engine_named(words, &race.engine);
	if (!race.device || !number(words.word[3], &address) || !number(words.word[4], &race.length) ||
	    !number(words.word[5], &rounds))
		return;
	race.memory = process_memory(address, race.length);
	if (!race.memory)
		return;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (!strcmp(words.word[2], kinds[i].name))
			round = kinds[i].round;
	if (!round)
		return fail("no kind %s", words.word[2]);
	for (uint64_t i = 0; i < rounds; i++)
		if (!progress(&race) || !round(&race))
			return fail_errno("round %llu, restart %u", (unsigned long long)i, race.restarts);
	ok("restarts=%u", race.restarts);
}

const struct command churn_commands[] = {
	{ "churn", 6, 6, churn },
	{ NULL, 0, 0, NULL },
};
