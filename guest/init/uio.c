// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Devices that work on the addresses of this process: the kernel's driver uio_pci_sva binds them to whoever opens them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"
#include "init.h"
#include "region.h"
#include "vfio.h"

#define DEVICES "/sys/bus/pci/devices"

/* Opens /dev/uioN; sysfs says which. It stays open over an exec: what becomes of the device then is worth a test. */
static int open_file(const char *address)
{
	char path[PATH_MAX], name[NAME_MAX + 1] = "";

	snprintf(path, sizeof path, DEVICES "/%s/uio", address);
	DIR *directory = opendir(path);
	if (!directory)
		return -1;
	for (struct dirent *entry; !name[0] && (entry = readdir(directory));)
		if (!strncmp(entry->d_name, "uio", 3))
			snprintf(name, sizeof name, "%s", entry->d_name);
	closedir(directory);
	snprintf(path, sizeof path, "/dev/%s", name[0] ? name : "no uio");
	return open(path, O_RDWR);
}

/* Past UIO, whose own way of mapping lockdep complains of (Linux 7.2), and then checks no more locks. */
static volatile uint8_t *map_registers(const char *address)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, DEVICES "/%s/resource%d", address, ENGINE_BAR);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	void *registers = mmap(NULL, REGISTERS_LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int reason = errno;
	close(fd);
	errno = reason;
	return registers == MAP_FAILED ? NULL : registers;
}

/* The kernel attaches this process's memory to a PASID of the device, and tells which. */
static void share(struct words words)
{
	struct device device = { .group = -1 };
	char path[PATH_MAX];

	snprintf(device.address, sizeof device.address, "%s", pci_address(words.word[1]));
	device.fd = open_file(device.address);
	if (device.fd < 0)
		return fail_errno("cannot open %s", device.address);
	device.registers = map_registers(device.address);
	snprintf(path, sizeof path, DEVICES "/%s/pasid", device.address);
	const char *pasid = device.registers ? slurp(path) : NULL;
	if (pasid && keep_device(words.word[0], &device))
		return ok("pasid=%s", pasid);
	int reason = errno;
	device_close(&device);
	errno = reason;
	fail_errno("%s of %s", device.registers ? "PASID" : "registers", words.word[1]);
}

const struct command uio_commands[] = {
	{ "share", 2, 2, share },
	{ NULL, 0, 0, NULL },
};
