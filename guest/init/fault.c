// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Page tables with a fault queue: page requests come out of it, answers go into it. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "init.h"
#include "uapi.h"
#include "vfio.h"

#define MOST 32
#define MOST_FAULTS 64

static struct named_table {
	char name[32];
	struct table table;
} tables[MOST];

/* The table of that name, or a free place for the name ""; answers when there is none. */
static struct named_table *find_table(const char *name)
{
	for (int i = 0; i < MOST; i++)
		if (!strcmp(tables[i].name, name))
			return &tables[i];
	fail("no page table \"%s\"", name);
	return NULL;
}

struct table *table_named(const char *name)
{
	struct named_table *table = find_table(name);

	return table ? &table->table : NULL;
}

static void open_table(struct words words)
{
	struct named_table *table = find_table("");
	struct device *device = table ? device_named(words.word[1]) : NULL;
	struct space *space = device ? space_named(words.word[2]) : NULL;

	if (!space)
		return;
	bool for_pasids = words.count > 3 && !strcmp(words.word[3], "pasids");
	if (words.count > 3 && !for_pasids)
		return fail("%s is not \"pasids\"", words.word[3]);
	if (!table_open(&table->table, device, space, for_pasids))
		return fail_errno("%s", vfio_step());
	snprintf(table->name, sizeof table->name, "%s", words.word[0]);
	ok("%s", "");
}

static void close_table(struct words words)
{
	struct named_table *table = find_table(words.word[0]);

	if (!table)
		return;
	table_close(&table->table);
	table->name[0] = 0;
	ok("%s", "");
}

static void attach_table(struct words words)
{
	struct device *device = device_named(words.word[0]);
	struct named_table *table = device ? find_table(words.word[1]) : NULL;

	if (!table)
		return;
	if (!device_attach_table(device, &table->table))
		return fail_errno("%s", vfio_step());
	ok("%s", "");
}

static void attach_pasid(struct words words)
{
	struct device *device = device_named(words.word[0]);
	struct named_table *table = device ? find_table(words.word[1]) : NULL;
	uint64_t pasid;

	if (!table || !number(words.word[2], &pasid))
		return;
	if (!device_attach_pasid(device, &table->table, pasid))
		return fail_errno("%s", vfio_step());
	ok("%s", "");
}

static void detach_pasid(struct words words)
{
	struct device *device = device_named(words.word[0]);
	uint64_t pasid;

	if (!device || !number(words.word[1], &pasid))
		return;
	if (!device_detach_pasid(device, pasid))
		return fail_errno("%s", vfio_step());
	ok("%s", "");
}

static void show(const struct iommufd_fault *fault)
{
	char pasid[16] = "none";

	if (fault->flags & IOMMUFD_FAULT_PASID_VALID)
		snprintf(pasid, sizeof pasid, "%u", fault->pasid);
	data("cookie=%u group=%u pasid=%s access=%s%s%s%s address=%#llx last=%d", fault->cookie, fault->group, pasid,
	     fault->perm & 1 ? "r" : "", fault->perm & 2 ? "w" : "", fault->perm & 4 ? "x" : "",
	     fault->perm & 8 ? "p" : "", (unsigned long long)fault->address,
	     !!(fault->flags & IOMMUFD_FAULT_LAST_PAGE));
}

/* Waits for page requests: all that are there, in whole groups. */
static void read_faults(struct words words)
{
	struct iommufd_fault faults[MOST_FAULTS];
	struct named_table *table = find_table(words.word[0]);
	uint64_t seconds;

	if (!table || !number(words.word[1], &seconds))
		return;
	struct pollfd poller = { .fd = table->table.fd, .events = POLLIN };
	if (poll(&poller, 1, seconds * 1000) < 0)
		return fail_errno("poll");
	ssize_t length = read(table->table.fd, faults, sizeof faults);
	if (length < 0)
		return fail_errno("read");
	if (!length)
		return fail("no fault within %llu s", (unsigned long long)seconds);
	for (size_t i = 0; i < length / sizeof *faults; i++)
		show(&faults[i]);
	ok("%s", "");
}

static void answer(struct words words)
{
	struct named_table *table = find_table(words.word[0]);
	uint64_t cookie;

	if (!table || !number(words.word[1], &cookie))
		return;
	bool invalid = !strcmp(words.word[2], "invalid");
	if (!invalid && strcmp(words.word[2], "success"))
		return fail("%s is neither success nor invalid", words.word[2]);
	struct iommufd_fault_answer reply = { .cookie = cookie, .code = invalid };
	if (write(table->table.fd, &reply, sizeof reply) != sizeof reply)
		return fail_errno("write");
	ok("%s", "");
}

const struct command fault_commands[] = {
	{ "table", 3, 4, open_table },
	{ "table-free", 1, 1, close_table },
	{ "attach-table", 2, 2, attach_table },
	{ "attach-pasid", 3, 3, attach_pasid },
	{ "detach-pasid", 2, 2, detach_pasid },
	{ "faults", 2, 2, read_faults },
	{ "answer", 3, 3, answer },
	{ NULL, 0, 0, NULL },
};
