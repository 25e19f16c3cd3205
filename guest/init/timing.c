// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* What the kernel takes for what a process does with its memory. */
#include <sys/mman.h>

#include "init.h"

/* Writes to a byte of each page: nanoseconds a page. */
static void time_touch(struct words words)
{
	uint64_t address, length;

	if (!number(words.word[0], &address) || !number(words.word[1], &length))
		return;
	volatile uint8_t *memory = process_memory(address, length);
	if (!memory)
		return;
	if (length < PAGE)
		return fail("less than a page");
	uint64_t start = now_ns();
	for (uint64_t at = 0; at < length; at += PAGE)
		memory[at] = 1;
	ok("page=%llu", (unsigned long long)((now_ns() - start) / (length / PAGE)));
}

/* Forbids writes to memory, permits them again, and writes: nanoseconds a round. */
static void time_protect(struct words words)
{
	uint64_t address, length, rounds;

	if (!number(words.word[0], &address) || !number(words.word[1], &length) || !number(words.word[2], &rounds))
		return;
	volatile uint8_t *memory = process_memory(address, length);
	if (!memory)
		return;
	if (!rounds)
		return fail("no round");
	uint64_t start = now_ns();
	for (uint64_t i = 0; i < rounds; i++) {
		if (mprotect((void *)memory, length, PROT_READ) || mprotect((void *)memory, length, PROT_READ | PROT_WRITE))
			return fail_errno("mprotect");
		*memory = i;
	}
	ok("round=%llu", (unsigned long long)((now_ns() - start) / rounds));
}

const struct command timing_commands[] = {
	{ "time-touch", 2, 2, time_touch },
	{ "time-protect", 3, 3, time_protect },
	{ NULL, 0, 0, NULL },
};
