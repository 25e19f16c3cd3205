/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Registers and descriptors of the fault engine: docs/fault-engine.md. */
#ifndef ENGINE_H
#define ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#define ENGINE_BAR 2
#define ENGINE_ID 0x45544c46
#define ENGINES 8
#define ENGINE_REGISTER(engine, offset) (0x100 + 0x100 * (engine) + (offset))

enum engine_register {
	ENGINE_CONTROL = 0x00,
	ENGINE_STATUS = 0x04,
	ENGINE_DOORBELL = 0x08,
	ENGINE_VECTOR = 0x0c,
	ENGINE_HEAD = 0x10,
	ENGINE_HEAD_HIGH = 0x14,
	ENGINE_FETCH_PASID = 0x18,
	ENGINE_INTERRUPT = 0x20,
	ENGINE_COMPLETED = 0x24,
};

/* States, in the lowest byte of ENGINE_STATUS. */
#define ENGINE_STATE(status) ((status) & 0xff)
#define ENGINE_IDLE 0

#define ENGINE_CONTROL_RESET 1
#define ENGINE_CONTROL_INTERRUPT 2
#define ENGINE_CONTROL_FETCH_PASID 4
#define ENGINE_CONTROL_FETCH_PAGE_REQUESTS 8

struct descriptor {
	uint8_t operation, group;
	uint16_t flags;
	uint32_t pasid;
	uint64_t address, other;
	uint32_t length, pieces;
	uint64_t next;
	/* Written by the engine. */
	uint32_t status, done;
	uint64_t fault;
	uint32_t groups, retries;
};

struct piece {
	uint64_t address;
	uint32_t length, reserved;
};

struct device;
struct words;

/* A register of an engine: false and errno on failure. */
bool engine_get(struct device *device, uint64_t engine, enum engine_register offset, uint32_t *value);
bool engine_set(struct device *device, uint64_t engine, enum engine_register offset, uint32_t value);
/* The device and the engine that the first two words name; answers and returns NULL when there is none. */
struct device *engine_named(struct words words, uint64_t *engine);

_Static_assert(sizeof(struct descriptor) == 64, "descriptor");
_Static_assert(sizeof(struct piece) == 16, "piece of a scatter list");

#endif
