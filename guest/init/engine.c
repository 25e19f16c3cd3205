// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* A driver of user space for the fault engine: its descriptors lie in buffers of address spaces. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"
#include "init.h"
#include "region.h"
#include "vfio.h"

static const char *const operations[] = {
	"nop", "read", "write", "copy", "page-request", "translate", "stop-marker", "flush",
};

/* In the order of their bits. */
static const char *const flags[] = {
	"pasid", "exec", "privileged", "page-requests", "for-read", "for-write", "interrupt", "untranslated",
};

static const char *const outcomes[] = {
	"none", "done", "bad-descriptor", "limit", "bus-master", "pasid-disabled", "translation", "permission", "blocked",
	"no-memory", "page-requests-disabled", "allocation", "invalid-request", "response-failure", "retries",
	"ats-disabled", "reset",
};

/* How long an engine may take to a state. */
#define STATE_SECONDS 20

#define COUNT(array) (sizeof array / sizeof *array)

/* The eventfds of the engines of the one device that is in use. */
static int vectors[ENGINES];
static const struct device *user;

/* The place of a word in a list, or -1. */
static int place(const char *const *list, size_t count, const char *word)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(list[i], word))
			return i;
	return -1;
}

static const char *outcome_name(uint32_t outcome)
{
	return outcome < COUNT(outcomes) ? outcomes[outcome] : "unknown";
}

bool engine_set(struct device *device, uint64_t engine, enum engine_register offset, uint32_t value)
{
	return region_write(device, ENGINE_BAR, ENGINE_REGISTER(engine, offset), &value, sizeof value);
}

bool engine_get(struct device *device, uint64_t engine, enum engine_register offset, uint32_t *value)
{
	return region_read(device, ENGINE_BAR, ENGINE_REGISTER(engine, offset), value, sizeof *value);
}

struct device *engine_named(struct words words, uint64_t *engine)
{
	struct device *device = device_named(words.word[0]);

	if (!device || !number(words.word[1], engine))
		return NULL;
	if (*engine >= ENGINES) {
		fail("there are %d engines", ENGINES);
		return NULL;
	}
	return device;
}

static void open_engines(struct words words)
{
	struct device *device = device_named(words.word[0]);
	uint32_t id;

	if (!device)
		return;
	if (!device_enable(device, true) || !region_read(device, ENGINE_BAR, 0, &id, sizeof id))
		return fail_errno("registers");
	if (id != ENGINE_ID)
		return fail("BAR %d begins with %#x: no fault engine", ENGINE_BAR, id);
	/* UIO has one interrupt for all engines, and it is there. */
	if (device->registers)
		return ok("%s", "");
	for (int i = 0; user && i < ENGINES; i++)
		close(vectors[i]);
	user = device;
	if (!device_interrupts(device, vectors, ENGINES))
		return fail_errno("interrupts");
	ok("%s", "");
}

static void bus_master(struct words words)
{
	struct device *device = device_named(words.word[0]);
	bool on = !strcmp(words.word[1], "on");

	if (!device)
		return;
	if (!on && strcmp(words.word[1], "off"))
		return fail("%s is neither on nor off", words.word[1]);
	if (!device_enable(device, on))
		return fail_errno("PCI command register");
	ok("%s", "");
}

static void reset_device(struct words words)
{
	struct device *device = device_named(words.word[0]);

	if (!device)
		return;
	if (!device_reset(device))
		return fail_errno("%s", vfio_step());
	ok("%s", "");
}

static bool parse_flags(const char *text, uint16_t *value)
{
	char copy[256], *rest = NULL;

	snprintf(copy, sizeof copy, "%s", text);
	for (char *word = strtok_r(copy, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
		int bit = place(flags, COUNT(flags), word);
		if (bit < 0) {
			fail("no flag %s", word);
			return false;
		}
		*value |= 1 << bit;
	}
	return true;
}

/* KEY=VALUE into a descriptor; answers when it cannot. */
static bool parse_field(char *word, struct descriptor *descriptor)
{
	char *value = strchr(word, '=');
	uint64_t n;

	if (!value) {
		fail("%s is not KEY=VALUE", word);
		return false;
	}
	*value++ = 0;
	if (!strcmp(word, "flags"))
		return parse_flags(value, &descriptor->flags);
	if (!number(value, &n))
		return false;
	if (!strcmp(word, "group"))
		descriptor->group = n;
	else if (!strcmp(word, "pasid"))
		descriptor->pasid = n;
	else if (!strcmp(word, "address"))
		descriptor->address = n;
	else if (!strcmp(word, "other"))
		descriptor->other = n;
	else if (!strcmp(word, "length"))
		descriptor->length = n;
	else if (!strcmp(word, "pieces"))
		descriptor->pieces = n;
	else if (!strcmp(word, "next"))
		descriptor->next = n;
	else {
		fail("no field %s", word);
		return false;
	}
	return true;
}

static void store_descriptor(struct words words)
{
	int operation = place(operations, COUNT(operations), words.word[2]);
	struct descriptor descriptor = { .operation = operation };
	uint64_t iova;

	if (!number(words.word[1], &iova))
		return;
	if (operation < 0)
		return fail("no operation %s", words.word[2]);
	for (int i = 3; i < words.count; i++)
		if (!parse_field(words.word[i], &descriptor))
			return;
	uint8_t *memory = memory_at(words.word[0], iova, sizeof descriptor);
	if (!memory)
		return;
	memcpy(memory, &descriptor, sizeof descriptor);
	ok("%s", "");
}

/* ADDRESS:LENGTH words into a scatter list. */
static void store_pieces(struct words words)
{
	uint64_t iova, count = words.count - 2;

	if (!number(words.word[1], &iova))
		return;
	struct piece *pieces = (void *)memory_at(words.word[0], iova, count * sizeof *pieces);
	if (!pieces)
		return;
	for (uint64_t i = 0; i < count; i++) {
		char *length = strchr(words.word[2 + i], ':');
		uint64_t address, bytes;
		if (!length)
			return fail("%s is not ADDRESS:LENGTH", words.word[2 + i]);
		*length++ = 0;
		if (!number(words.word[2 + i], &address) || !number(length, &bytes))
			return;
		pieces[i] = (struct piece){ .address = address, .length = bytes };
	}
	ok("%s", "");
}

static void show_completion(struct words words)
{
	struct descriptor descriptor;
	uint64_t iova;

	if (!number(words.word[1], &iova))
		return;
	uint8_t *memory = memory_at(words.word[0], iova, sizeof descriptor);
	if (!memory)
		return;
	memcpy(&descriptor, memory, sizeof descriptor);
	ok("status=%s done=%u address=%#llx groups=%u retries=%u", outcome_name(descriptor.status), descriptor.done,
	   (unsigned long long)descriptor.fault, descriptor.groups, descriptor.retries);
}

/* When each engine was started last. */
static uint64_t started[ENGINES];

static void start(struct words words)
{
	uint32_t control = ENGINE_CONTROL_INTERRUPT, fetch_pasid = 0;
	uint64_t engine, head, pasid;
	struct device *device = engine_named(words, &engine);

	if (!device || !number(words.word[2], &head))
		return;
	for (int i = 3; i < words.count; i++) {
		if (!strcmp(words.word[i], "page-requests")) {
			control |= ENGINE_CONTROL_FETCH_PAGE_REQUESTS;
		} else {
			if (!number(words.word[i], &pasid))
				return;
			control |= ENGINE_CONTROL_FETCH_PASID;
			fetch_pasid = pasid;
		}
	}
	/* UIO has one interrupt. What the engine has said to a process before this one is of no interest. */
	uint32_t vector = device->registers ? 0 : engine;
	started[engine] = now_ns();
	bool good = engine_set(device, engine, ENGINE_CONTROL, control) && engine_set(device, engine, ENGINE_VECTOR, vector) &&
		    engine_set(device, engine, ENGINE_INTERRUPT, UINT32_MAX) &&
		    engine_set(device, engine, ENGINE_FETCH_PASID, fetch_pasid) && engine_set(device, engine, ENGINE_HEAD, head) &&
		    engine_set(device, engine, ENGINE_HEAD_HIGH, head >> 32) && engine_set(device, engine, ENGINE_DOORBELL, 1);
	if (!good)
		return fail_errno("registers");
	ok("%s", "");
}

/* Waits for an interrupt: what came of that, as poll() says it. */
static int await_interrupt(const struct device *device, int fd, uint64_t seconds)
{
	struct pollfd poller = { .fd = fd, .events = POLLIN };
	int ready = poll(&poller, 1, seconds * 1000);
	uint64_t count;

	/* UIO counts in 32 bits, an eventfd in 64. */
	if (ready > 0 && read(fd, &count, device->registers ? sizeof(uint32_t) : sizeof count) < 0)
		return -1;
	return ready;
}

/* Waits for the interrupt of an engine: what came of its chain. */
static void wait_for_end(struct words words)
{
	uint64_t engine, seconds;
	struct device *device = engine_named(words, &engine);
	uint32_t status, causes = 0;

	if (!device || !number(words.word[2], &seconds))
		return;
	bool is_shared = device->registers;
	if (!is_shared && device != user)
		return fail("%s has no interrupts: see \"engines\"", words.word[0]);
	/* Where engines share an interrupt, this one's may have come with that of another. */
	if (is_shared && !engine_get(device, engine, ENGINE_INTERRUPT, &causes))
		return fail_errno("registers");
	while (!causes) {
		int ready = await_interrupt(device, is_shared ? device->fd : vectors[engine], seconds);
		if (ready < 0)
			return fail_errno("interrupt");
		if (!ready)
			return fail("no interrupt within %llu s", (unsigned long long)seconds);
		if (!engine_get(device, engine, ENGINE_INTERRUPT, &causes))
			return fail_errno("registers");
		if (!is_shared)
			break;
	}
	if (!engine_get(device, engine, ENGINE_STATUS, &status) ||
	    !engine_set(device, engine, ENGINE_INTERRUPT, causes))
		return fail_errno("registers");
	ok("outcome=%s state=%u causes=%#x took=%llu", outcome_name(status >> 8), status & 0xff, causes,
	   (unsigned long long)(now_ns() - started[engine]));
}

static void reset_engine(struct words words)
{
	uint64_t engine;
	struct device *device = engine_named(words, &engine);

	if (!device)
		return;
	if (!engine_set(device, engine, ENGINE_CONTROL, ENGINE_CONTROL_RESET))
		return fail_errno("registers");
	ok("%s", "");
}

/* Starts engines with the registers that they have, and ends this process when the last of them is in a state. Until then
 * nothing else runs on this processor: what that state waits for does not happen. */
static void kill_when(struct words words)
{
	struct sched_param first = { .sched_priority = 1 }, usual = { 0 };
	struct device *device = device_named(words.word[0]);
	uint64_t wanted, engine = 0, end = now_ns() + STATE_SECONDS * UINT64_C(1000000000);
	uint32_t status = 0;

	if (!device || !number(words.word[1], &wanted))
		return;
	if (sched_setscheduler(0, SCHED_FIFO, &first))
		return fail_errno("sched_setscheduler");
	for (int i = 2; i < words.count; i++) {
		struct words next = { 2, (char *[]){ words.word[0], words.word[i] } };
		if (!engine_named(next, &engine) || !engine_set(device, engine, ENGINE_DOORBELL, 1))
			break;
	}
	do {
		if (!engine_get(device, engine, ENGINE_STATUS, &status))
			break;
	} while (ENGINE_STATE(status) != wanted && now_ns() < end);
	if (ENGINE_STATE(status) == wanted)
		kill(getpid(), SIGKILL);
	sched_setscheduler(0, SCHED_OTHER, &usual);
	fail("engine %llu is in state %u, not %llu", (unsigned long long)engine, ENGINE_STATE(status),
	     (unsigned long long)wanted);
}

static void register_word(struct words words)
{
	struct device *device = device_named(words.word[0]);
	uint64_t offset, value;
	uint32_t word;

	if (!device || !number(words.word[1], &offset))
		return;
	if (words.count > 2) {
		if (!number(words.word[2], &value))
			return;
		word = value;
		if (!region_write(device, ENGINE_BAR, offset, &word, sizeof word))
			return fail_errno("register");
		return ok("%s", "");
	}
	if (!region_read(device, ENGINE_BAR, offset, &word, sizeof word))
		return fail_errno("register");
	ok("%#x", word);
}

const struct command engine_commands[] = {
	{ "engines", 1, 1, open_engines },
	{ "bus-master", 2, 2, bus_master },
	{ "reset", 1, 1, reset_device },
	{ "descriptor", 3, -1, store_descriptor },
	{ "pieces", 3, -1, store_pieces },
	{ "completion", 2, 2, show_completion },
	{ "start", 3, 5, start },
	{ "wait", 3, 3, wait_for_end },
	{ "engine-reset", 2, 2, reset_engine },
	{ "kill-when", 3, 10, kill_when },
	{ "register", 2, 3, register_word },
	{ NULL, 0, 0, NULL },
};
