// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "engine.h"
#include "region.h"
#include "uapi.h"
#include "vfio.h"

static bool fail_with(int reason)
{
	errno = reason;
	return false;
}

static bool find_region(struct device *device, uint32_t index, uint64_t offset, size_t length, off_t *at)
{
	struct vfio_region_arg region = { .argsz = sizeof region, .index = index };

	if (ioctl(device->fd, VFIO_DEVICE_REGION, &region))
		return false;
	if (offset > region.size || length > region.size - offset)
		return fail_with(ERANGE);
	*at = region.offset + offset;
	return true;
}

/* The word of a device whose registers are mapped; NULL and errno when there is no such word. */
static volatile uint32_t *find_word(struct device *device, uint32_t index, uint64_t offset, size_t length)
{
	if (index != ENGINE_BAR || length != sizeof(uint32_t) || offset % length || offset > REGISTERS_LENGTH - length) {
		errno = ERANGE;
		return NULL;
	}
	return (volatile uint32_t *)(device->registers + offset);
}

static bool whole(ssize_t moved, size_t length)
{
	return moved == (ssize_t)length || (moved >= 0 && fail_with(EIO));
}

bool region_read(struct device *device, uint32_t index, uint64_t offset, void *data, size_t length)
{
	off_t at;

	if (device->registers) {
		volatile uint32_t *word = find_word(device, index, offset, length);
		if (word)
			*(uint32_t *)data = *word;
		return word;
	}
	return find_region(device, index, offset, length, &at) && whole(pread(device->fd, data, length, at), length);
}

bool region_write(struct device *device, uint32_t index, uint64_t offset, const void *data, size_t length)
{
	off_t at;

	if (device->registers) {
		volatile uint32_t *word = find_word(device, index, offset, length);
		if (word)
			*word = *(const uint32_t *)data;
		return word;
	}
	return find_region(device, index, offset, length, &at) && whole(pwrite(device->fd, data, length, at), length);
}

bool device_enable(struct device *device, bool bus_master)
{
	uint16_t command;

	if (!region_read(device, VFIO_CONFIG_REGION, PCI_COMMAND_OFFSET, &command, sizeof command))
		return false;
	command |= PCI_COMMAND_MEMORY_BIT;
	command = bus_master ? command | PCI_COMMAND_MASTER_BIT : command & ~PCI_COMMAND_MASTER_BIT;
	return region_write(device, VFIO_CONFIG_REGION, PCI_COMMAND_OFFSET, &command, sizeof command);
}

bool device_interrupts(struct device *device, int *fds, uint32_t count)
{
	char buffer[sizeof(struct vfio_irqs_arg) + MOST_VECTORS * sizeof *fds];
	struct vfio_irqs_arg *irqs = (void *)buffer;

	if (count > MOST_VECTORS)
		return fail_with(E2BIG);
	for (uint32_t i = 0; i < count; i++) {
		fds[i] = eventfd(0, EFD_CLOEXEC);
		if (fds[i] < 0)
			return false;
	}
	*irqs = (struct vfio_irqs_arg){
		.argsz = sizeof *irqs + count * sizeof *fds,
		.flags = VFIO_IRQS_EVENTFD | VFIO_IRQS_TRIGGER,
		.index = VFIO_MSIX_INTERRUPTS,
		.count = count,
	};
	memcpy(irqs->data, fds, count * sizeof *fds);
	return !ioctl(device->fd, VFIO_DEVICE_IRQS, irqs);
}
