// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "init.h"
#include "region.h"
#include "uapi.h"
#include "vfio.h"

static const char *step = "";
static int iommufd = -1;

const char *vfio_step(void)
{
	return step;
}

/* An ioctl with a name for the error message. */
#define CALL(fd, request, argument) (step = #request, ioctl(fd, request, argument) >= 0)

static bool has_iommufd(void)
{
	if (iommufd < 0)
		iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	return iommufd >= 0;
}

static int open_step(const char *path)
{
	step = "open";
	return open(path, O_RDWR | O_CLOEXEC);
}

/* Opens /dev/vfio/devices/vfioN; sysfs says which. */
static int open_device_file(const char *address)
{
	char path[PATH_MAX];
	int fd = -1;

	step = "look for vfio-dev";
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", address);
	DIR *directory = opendir(path);
	if (!directory)
		return -1;
	for (struct dirent *entry; fd < 0 && (entry = readdir(directory));) {
		if (strncmp(entry->d_name, "vfio", 4))
			continue;
		snprintf(path, sizeof path, "/dev/vfio/devices/%s", entry->d_name);
		fd = open_step(path);
	}
	int reason = errno;
	closedir(directory);
	errno = reason;
	return fd;
}

bool device_open(struct device *device, const char *address)
{
	char path[PATH_MAX];

	*device = (struct device){ .fd = -1, .group = -1 };
	snprintf(device->address, sizeof device->address, "%s", address);
	if (has_iommufd()) {
		device->fd = open_device_file(address);
		if (device->fd < 0)
			return false;
		struct vfio_bind_arg bind = { .argsz = sizeof bind, .iommufd = iommufd };
		if (CALL(device->fd, VFIO_DEVICE_BIND, &bind)) {
			device->id = bind.devid;
			return true;
		}
		int reason = errno;
		device_close(device);
		errno = reason;
		return false;
	}
	step = "look for iommu_group";
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", address);
	const char *number = link_name(path);
	if (!number)
		return false;
	snprintf(path, sizeof path, "/dev/vfio/%s", number);
	device->group = open_step(path);
	return device->group >= 0;
}

void device_close(struct device *device)
{
	if (device->fd >= 0)
		close(device->fd);
	if (device->group >= 0)
		close(device->group);
	if (device->registers)
		munmap((void *)device->registers, REGISTERS_LENGTH);
	device->registers = NULL;
	device->fd = device->group = -1;
}

bool device_attach(struct device *device, struct space *space)
{
	if (device->group < 0) {
		struct vfio_attach_arg attach = { .argsz = sizeof attach, .pt_id = space->ioas };
		return CALL(device->fd, VFIO_DEVICE_ATTACH, &attach);
	}
	if (!CALL(device->group, VFIO_GROUP_JOIN_CONTAINER, &space->container))
		return false;
	if (!space->has_type) {
		if (!CALL(space->container, VFIO_CONTAINER_SET_IOMMU, VFIO_TYPE1V2))
			return false;
		space->has_type = true;
	}
	step = "VFIO_GROUP_DEVICE_FD";
	device->fd = ioctl(device->group, VFIO_GROUP_DEVICE_FD, device->address);
	return device->fd >= 0;
}

bool device_detach(struct device *device)
{
	if (device->group < 0) {
		struct vfio_detach_arg detach = { .argsz = sizeof detach };
		return CALL(device->fd, VFIO_DEVICE_DETACH, &detach);
	}
	if (device->fd >= 0)
		close(device->fd);
	device->fd = -1;
	return CALL(device->group, VFIO_GROUP_LEAVE_CONTAINER, NULL);
}

static void destroy(uint32_t id)
{
	struct iommufd_destroy_arg arg = { .size = sizeof arg, .id = id };

	ioctl(iommufd, IOMMUFD_DESTROY, &arg);
}

bool table_open(struct table *table, struct device *device, struct space *space, bool for_pasids)
{
	struct iommufd_fault_queue_arg queue = { .size = sizeof queue };

	step = "look for iommufd";
	errno = ENODEV;
	if (space->container >= 0 || !CALL(iommufd, IOMMUFD_FAULT_QUEUE_ALLOC, &queue))
		return false;
	struct iommufd_hwpt_alloc_arg alloc = {
		.size = sizeof alloc,
		.flags = IOMMUFD_HWPT_FAULT_ID_VALID | (for_pasids ? IOMMUFD_HWPT_PASID : 0),
		.dev_id = device->id,
		.pt_id = space->ioas,
		.fault_id = queue.fault_id,
	};
	*table = (struct table){ .queue = queue.fault_id, .fd = queue.fd };
	if (CALL(iommufd, IOMMUFD_HWPT_ALLOC, &alloc)) {
		table->hwpt = alloc.hwpt;
		return true;
	}
	int reason = errno;
	close(table->fd);
	destroy(table->queue);
	errno = reason;
	return false;
}

void table_close(struct table *table)
{
	destroy(table->hwpt);
	close(table->fd);
	destroy(table->queue);
}

bool device_attach_table(struct device *device, struct table *table)
{
	struct vfio_attach_arg attach = { .argsz = sizeof attach, .pt_id = table->hwpt };

	return CALL(device->fd, VFIO_DEVICE_ATTACH, &attach);
}

bool device_attach_pasid(struct device *device, struct table *table, uint32_t pasid)
{
	struct vfio_pasid_arg attach = {
		.argsz = sizeof attach, .flags = VFIO_ATTACH_PASID, .pt_id = table->hwpt, .pasid = pasid,
	};

	return CALL(device->fd, VFIO_DEVICE_ATTACH, &attach);
}

bool device_detach_pasid(struct device *device, uint32_t pasid)
{
	struct vfio_detach_pasid_arg detach = { .argsz = sizeof detach, .flags = VFIO_ATTACH_PASID, .pasid = pasid };

	return CALL(device->fd, VFIO_DEVICE_DETACH, &detach);
}

bool device_reset(struct device *device)
{
	return CALL(device->fd, VFIO_DEVICE_RESET_ALL, NULL);
}

bool space_open(struct space *space)
{
	*space = (struct space){ .container = -1 };
	if (has_iommufd()) {
		struct iommufd_ioas_alloc_arg alloc = { .size = sizeof alloc };
		if (!CALL(iommufd, IOMMUFD_IOAS_ALLOC, &alloc))
			return false;
		space->ioas = alloc.ioas;
		return true;
	}
	space->container = open_step("/dev/vfio/vfio");
	return space->container >= 0;
}

void space_close(struct space *space)
{
	if (space->container >= 0)
		close(space->container);
	else
		destroy(space->ioas);
}

bool space_map(struct space *space, uint64_t iova, void *memory, uint64_t length, bool read, bool write)
{
	if (space->container < 0) {
		struct iommufd_map_arg map = {
			.size = sizeof map,
			.flags = IOMMUFD_MAP_FIXED | (read ? IOMMUFD_MAP_READ : 0) | (write ? IOMMUFD_MAP_WRITE : 0),
			.ioas = space->ioas,
			.vaddr = (uintptr_t)memory,
			.length = length,
			.iova = iova,
		};
		return CALL(iommufd, IOMMUFD_IOAS_MAP, &map);
	}
	struct vfio_map_arg map = {
		.argsz = sizeof map,
		.flags = (read ? VFIO_MAP_READ : 0) | (write ? VFIO_MAP_WRITE : 0),
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = length,
	};
	return CALL(space->container, VFIO_TYPE1_MAP, &map);
}

bool space_unmap(struct space *space, uint64_t iova, uint64_t length)
{
	if (space->container < 0) {
		struct iommufd_unmap_arg unmap = {
			.size = sizeof unmap, .ioas = space->ioas, .iova = iova, .length = length,
		};
		return CALL(iommufd, IOMMUFD_IOAS_UNMAP, &unmap);
	}
	struct vfio_unmap_arg unmap = { .argsz = sizeof unmap, .iova = iova, .size = length };
	return CALL(space->container, VFIO_TYPE1_UNMAP, &unmap);
}

/* A container tells its ranges in a capability behind the fixed part of its info. */
static int container_ranges(struct space *space, struct range *ranges, int most)
{
	static uint64_t buffer[512];
	struct vfio_info_arg *info = (void *)buffer;
	int count = 0;

	memset(buffer, 0, sizeof buffer);
	info->argsz = sizeof buffer;
	if (!CALL(space->container, VFIO_TYPE1_INFO, info))
		return -1;
	if (!(info->flags & VFIO_INFO_CAPS))
		return 0;
	for (uint32_t offset = info->cap_offset; offset;) {
		struct vfio_cap_ranges *cap = (void *)((char *)buffer + offset);
		offset = cap->head.next;
		if (cap->head.id != VFIO_INFO_CAP_RANGES)
			continue;
		for (; count < (int)cap->count && count < most; count++)
			ranges[count] = (struct range){ cap->range[count].start, cap->range[count].last };
	}
	return count;
}

int space_ranges(struct space *space, struct range *ranges, int most)
{
	struct iommufd_range raw[64];
	struct iommufd_ranges_arg arg = {
		.size = sizeof arg, .ioas = space->ioas, .count = 64, .ranges = (uintptr_t)raw,
	};

	if (space->container >= 0)
		return container_ranges(space, ranges, most);
	if (!CALL(iommufd, IOMMUFD_IOAS_RANGES, &arg))
		return -1;
	int count = (int)arg.count < most ? (int)arg.count : most;
	for (int i = 0; i < count; i++)
		ranges[i] = (struct range){ raw[i].start, raw[i].last };
	return count;
}
