// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* The kernel's log. Each read of /dev/kmsg gives one record: "priority,sequence,microseconds,flags;text\n...". */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "init.h"

static int mark = -1;

/* The next record's text with its time in front; NULL and errno without one. Valid until the next call. */
static const char *next_record(int fd)
{
	static char record[8192], text[8192 + 40];
	ssize_t length;

	do
		length = read(fd, record, sizeof record - 1);
	while (length < 0 && errno == EPIPE); /* records were overwritten: go on with the oldest */
	if (length < 0)
		return NULL;
	record[length] = 0;
	unsigned long long microseconds = 0;
	sscanf(record, "%*u,%*u,%llu", &microseconds);
	char *start = strchr(record, ';');
	start = start ? start + 1 : record;
	start[strcspn(start, "\n")] = 0;
	snprintf(text, sizeof text, "[%5llu.%06llu] %s", microseconds / 1000000, microseconds % 1000000, start);
	return text;
}

static void show_log(struct words words)
{
	char wanted[256];
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return fail_errno("/dev/kmsg");
	snprintf(wanted, sizeof wanted, "%s", join(words, 0));
	for (const char *text; (text = next_record(fd));)
		if (strstr(text, wanted))
			data("%s", text);
	close(fd);
	ok("%s", "");
}

static void set_mark(struct words words)
{
	(void)words;
	if (mark < 0)
		mark = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (mark < 0 || lseek(mark, 0, SEEK_END) < 0)
		return fail_errno("/dev/kmsg");
	ok("%s", "");
}

static int64_t now_ms(void)
{
	return now_ns() / 1000000;
}

static void wait_for(struct words words)
{
	char wanted[256];
	uint64_t seconds;

	if (!number(words.word[0], &seconds))
		return;
	if (mark < 0)
		return fail("log-mark first");
	snprintf(wanted, sizeof wanted, "%s", join(words, 1));
	int64_t deadline = now_ms() + seconds * 1000;
	for (;;) {
		const char *text = next_record(mark);
		if (text && strstr(text, wanted))
			return ok("%s", text);
		if (text)
			continue;
		if (errno != EAGAIN)
			return fail_errno("/dev/kmsg");
		int64_t left = deadline - now_ms();
		struct pollfd poller = { .fd = mark, .events = POLLIN };
		if (left <= 0 || poll(&poller, 1, left) == 0)
			return fail("no log line with \"%s\" within %llu s", wanted, (unsigned long long)seconds);
	}
}

/* A line of our own, that the console shows too. The kernel hands out a line without an end with the next one only. */
static void write_log(struct words words)
{
	char line[512];

	snprintf(line, sizeof line, "<1>%s\n", join(words, 0));
	if (!spit("/dev/kmsg", line))
		return fail_errno("/dev/kmsg");
	ok("%s", "");
}

const struct command log_commands[] = {
	{ "log", 0, -1, show_log },
	{ "log-write", 1, -1, write_log },
	{ "log-mark", 0, 0, set_mark },
	{ "log-wait", 2, -1, wait_for },
	{ NULL, 0, 0, NULL },
};
