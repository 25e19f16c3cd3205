/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * VFIO in two ways with one face: device files and iommufd where the kernel has them, groups and containers otherwise.
 *
 *     device ── attach ── space ── map ── memory of this process
 *
 * With iommufd, a page table with a fault queue can stand between device and space.
 *
 * All functions return false with errno set, and vfio_step() names the step that failed.
 */
#ifndef VFIO_H
#define VFIO_H

#include <stdbool.h>
#include <stdint.h>

/* A device of user space. */
struct device {
	int fd;		/* -1 while a group's device is attached to nothing */
	int group;	/* -1 with a device file */
	uint32_t id;	/* in iommufd */
	char address[32];
	volatile uint8_t *registers;	/* of a device that works on this process's memory (uio.c); NULL with VFIO */
};

/* An address space: an IOAS or a container. */
struct space {
	uint32_t ioas;
	int container;	/* -1 with iommufd */
	bool has_type;	/* a container gets its type with its first group */
};

/* A page table of an address space, with a queue for the page requests of the devices that are attached to it. */
struct table {
	uint32_t hwpt, queue;
	int fd;		/* the queue: faults are read, answers are written */
};

struct range {
	uint64_t start, last;
};

const char *vfio_step(void);

bool device_open(struct device *device, const char *address);
void device_close(struct device *device);
bool device_attach(struct device *device, struct space *space);
bool device_detach(struct device *device);

/* Only with iommufd. A table goes before its address space. A device that has PASIDs attached needs tables for PASIDs. */
bool table_open(struct table *table, struct device *device, struct space *space, bool for_pasids);
void table_close(struct table *table);
bool device_attach_table(struct device *device, struct table *table);
bool device_attach_pasid(struct device *device, struct table *table, uint32_t pasid);
bool device_detach_pasid(struct device *device, uint32_t pasid);
/* Resets the function. */
bool device_reset(struct device *device);

bool space_open(struct space *space);
void space_close(struct space *space);
bool space_map(struct space *space, uint64_t iova, void *memory, uint64_t length, bool read, bool write);
bool space_unmap(struct space *space, uint64_t iova, uint64_t length);
/* The allowed ranges: how many of `most` were filled in, or -1. */
int space_ranges(struct space *space, struct range *ranges, int most);

#endif
