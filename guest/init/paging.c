// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Paging for devices: the pages of a buffer are mapped when a device asks for them. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "init.h"
#include "uapi.h"
#include "vfio.h"

#define MOST_FAULTS 64

/* When a group was read, when its pages were mapped, when it was answered; how. */
struct course {
	uint64_t read, mapped, answered;
	bool success;
};

static void show(const struct iommufd_fault *fault, const struct course *course)
{
	data("time=%llu endpoint=%s group=%u access=%s%s%s%s address=%#llx mapped=%llu answered=%llu answer=%s",
	     (unsigned long long)course->read, device_address(fault->dev_id), fault->group,
	     fault->perm & 1 ? "r" : "", fault->perm & 2 ? "w" : "", fault->perm & 4 ? "x" : "",
	     fault->perm & 8 ? "p" : "", (unsigned long long)fault->address,
	     (unsigned long long)(course->mapped - course->read),
	     (unsigned long long)(course->answered - course->read), course->success ? "success" : "invalid");
}

/* One page. That another device had it mapped before is as good. */
static bool map_page(const char *space, uint64_t address)
{
	return map_from_buffer(space, address & ~(PAGE - 1), PAGE) || errno == EEXIST;
}

/* Maps the pages of a group and answers it: INVALID when one of them is in no buffer. */
static bool serve(struct table *table, const char *space, const struct iommufd_fault *group, int count, uint64_t read,
		  bool quiet)
{
	struct course course = { .read = read, .success = true };

	for (int i = 0; i < count; i++)
		course.success = map_page(space, group[i].address) && course.success;
	course.mapped = now_ns();
	struct iommufd_fault_answer answer = { .cookie = group->cookie, .code = !course.success };
	if (write(table->fd, &answer, sizeof answer) != sizeof answer)
		return false;
	course.answered = now_ns();
	for (int i = 0; i < count && !quiet; i++)
		show(&group[i], &course);
	return true;
}

/* Serves that many groups, a line for each page as soon as it is served; without lines with a word more. */
static void page_in(struct words words)
{
	struct iommufd_fault faults[MOST_FAULTS];
	struct table *table = table_named(words.word[0]);
	const char *space = words.word[1];
	uint64_t groups, seconds;
	bool quiet = words.count > 4;

	if (quiet && strcmp(words.word[4], "quiet"))
		return fail("%s: it is quiet, or it is not", words.word[4]);
	if (!table || !space_named(space) || !number(words.word[2], &groups) || !number(words.word[3], &seconds))
		return;
	while (groups) {
		struct pollfd poller = { .fd = table->fd, .events = POLLIN };
		if (poll(&poller, 1, seconds * 1000) <= 0)
			return fail("no page request within %llu s", (unsigned long long)seconds);
		uint64_t start = now_ns();
		ssize_t length = read(table->fd, faults, sizeof faults);
		if (length < 0)
			return fail_errno("read");
		/* The kernel hands out whole groups; the last request of each says so. */
		for (int i = 0, first = 0, count = length / sizeof *faults; i < count; i++) {
			if (!(faults[i].flags & IOMMUFD_FAULT_LAST_PAGE))
				continue;
			if (!serve(table, space, &faults[first], i + 1 - first, start, quiet))
				return fail_errno("write");
			first = i + 1;
			groups -= !!groups;
		}
	}
	ok("%s", "");
}

const struct command paging_commands[] = {
	{ "page-in", 4, 5, page_in },
	{ NULL, 0, 0, NULL },
};
