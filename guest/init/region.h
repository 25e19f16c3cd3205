/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Registers, configuration space and interrupts of a device of user space. All return false with errno set. */
#ifndef REGION_H
#define REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MOST_VECTORS 32

/* Of a device that works on this process's memory: as much of its BAR as is mapped. */
#define REGISTERS_LENGTH 4096

struct device;

/* Index 0 to 5 are the BARs. Of a device that works on this process's memory it is one, a word at a time. */
bool region_read(struct device *device, uint32_t index, uint64_t offset, void *data, size_t length);
bool region_write(struct device *device, uint32_t index, uint64_t offset, const void *data, size_t length);
/* Turns its memory BARs on, and bus mastering on or off. */
bool device_enable(struct device *device, bool bus_master);
/* Makes an eventfd for each of its first MSI-X vectors. */
bool device_interrupts(struct device *device, int *fds, uint32_t count);

#endif
