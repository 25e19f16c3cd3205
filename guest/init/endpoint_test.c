// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The driver pci_endpoint_test, and registers of a function beside it. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"
#include "uapi.h"

static const struct {
	const char *name;
	unsigned long number;
} transfers[] = {
	{ "read", PCITEST_READ },
	{ "write", PCITEST_WRITE },
	{ "copy", PCITEST_COPY },
};
#define TRANSFERS (sizeof transfers / sizeof *transfers)

/* By the driver's number of the type. */
static const struct {
	const char *name;
	unsigned long raise;
} interrupts[] = {
	{ "intx", PCITEST_INTX_IRQ },
	{ "msi", PCITEST_MSI_IRQ },
	{ "msix", PCITEST_MSIX_IRQ },
};
#define INTERRUPTS (sizeof interrupts / sizeof *interrupts)

static int open_test(uint64_t device)
{
	char path[64];

	snprintf(path, sizeof path, "/dev/pci-endpoint-test.%llu", (unsigned long long)device);
	return open(path, O_RDWR | O_CLOEXEC);
}

/* One ioctl of one device: 0 or a negative error number. */
static int control(uint64_t device, unsigned long request, unsigned long argument)
{
	int fd = open_test(device);

	if (fd < 0)
		return -errno;
	int failed = ioctl(fd, request, argument) < 0 ? -errno : 0;
	close(fd);
	return failed;
}

static int transfer(uint64_t device, size_t which, uint64_t length)
{
	struct pcitest_transfer_arg arg = { .size = length };

	return control(device, transfers[which].number, (unsigned long)&arg);
}

static void answer(const char *what, int failed)
{
	if (!failed)
		return ok("%s", "");
	errno = -failed;
	fail_errno("%s", what);
}

static void test_transfer(struct words words)
{
	uint64_t device, length;

	if (!number(words.word[0], &device) || !number(words.word[2], &length))
		return;
	for (size_t i = 0; i < TRANSFERS; i++)
		if (!strcmp(words.word[1], transfers[i].name))
			return answer(words.word[1], transfer(device, i, length));
	fail("%s is not read, write or copy", words.word[1]);
}

static void test_interrupts(struct words words)
{
	uint64_t device;

	if (!number(words.word[0], &device))
		return;
	for (size_t i = 0; i < INTERRUPTS; i++)
		if (!strcmp(words.word[1], interrupts[i].name))
			return answer(words.word[1], control(device, PCITEST_SET_IRQ_TYPE, i));
	fail("%s is not intx, msi or msix", words.word[1]);
}

static void test_interrupt(struct words words)
{
	uint64_t device, vector;

	if (!number(words.word[0], &device) || !number(words.word[2], &vector))
		return;
	for (size_t i = 0; i < INTERRUPTS; i++)
		if (!strcmp(words.word[1], interrupts[i].name))
			return answer(words.word[1], control(device, interrupts[i].raise, vector));
	fail("%s is not intx, msi or msix", words.word[1]);
}

/* A process of its own for a device: every kind of transfer, round by round. Its exit status is an error number. */
static int exercise(uint64_t device, uint64_t rounds, const uint64_t *lengths, int count)
{
	for (uint64_t round = 0; round < rounds; round++)
		for (int i = 0; i < count; i++)
			for (size_t which = 0; which < TRANSFERS; which++) {
				int failed = transfer(device, which, lengths[i]);
				if (failed)
					return -failed;
			}
	return 0;
}

static void test_together(struct words words)
{
	uint64_t devices, rounds, lengths[16];
	int count = words.count - 2, failed = 0;

	if (count > (int)(sizeof lengths / sizeof *lengths))
		return fail("too many lengths");
	if (!number(words.word[0], &devices) || !number(words.word[1], &rounds))
		return;
	for (int i = 0; i < count; i++)
		if (!number(words.word[2 + i], &lengths[i]))
			return;
	for (uint64_t device = 0; device < devices; device++) {
		pid_t child = fork();
		if (child < 0)
			return fail_errno("fork");
		if (!child)
			_exit(exercise(device, rounds, lengths, count));
	}
	for (uint64_t device = 0; device < devices; device++) {
		int status;
		if (wait(&status) < 0)
			return fail_errno("wait");
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			failed = WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
	}
	answer("a transfer", -failed);
}

/* A register through sysfs, whoever the driver is. */
static void bar(struct words words)
{
	uint64_t index, offset, value = 0;
	char path[PATH_MAX];

	if (!number(words.word[1], &index) || !number(words.word[2], &offset) ||
	    (words.count > 3 && !number(words.word[3], &value)))
		return;
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource%u", pci_address(words.word[0]),
		 (unsigned)index);
	int fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
	if (fd < 0)
		return fail_errno("%s", path);
	long page = sysconf(_SC_PAGESIZE);
	uint8_t *mapped = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset / page * page);
	close(fd);
	if (mapped == MAP_FAILED)
		return fail_errno("%s", path);
	volatile uint32_t *where = (volatile uint32_t *)(mapped + offset % page);
	if (words.count > 3)
		*where = value;
	else
		value = *where;
	munmap(mapped, page);
	ok("%#llx", (unsigned long long)value);
}

const struct command endpoint_test_commands[] = {
	{ "test-transfer", 3, 3, test_transfer },
	{ "test-interrupts", 2, 2, test_interrupts },
	{ "test-interrupt", 3, 3, test_interrupt },
	{ "test-together", 3, -1, test_together },
	{ "bar", 3, 4, bar },
	{ NULL, 0, 0, NULL },
};
