// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Start as init, read commands from the second serial line, answer them. */
/* close_range() */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "init.h"

/* The second serial line of a PC, and of a machine for Arm. */
static const char *const command_lines[] = { "/dev/ttyS1", "/dev/ttyAMA1" };
#define LONGEST_LINE 65536
#define MOST_WORDS 128

/* The two directions of the command line: a stream of its own each, because a serial line cannot seek. */
static FILE *in, *out;
/* Whether the last answer was an error. */
static bool failed;

static void answer(const char *start, const char *format, va_list arguments, const char *end)
{
	fputs(start, out);
	vfprintf(out, format, arguments);
	fputs(end, out);
	fputc('\n', out);
	fflush(out);
}

void data(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	answer("| ", format, arguments, "");
	va_end(arguments);
}

void ok(const char *format, ...)
{
	va_list arguments;

	failed = false;
	va_start(arguments, format);
	answer("= ok ", format, arguments, "");
	va_end(arguments);
}

void fail(const char *format, ...)
{
	va_list arguments;

	failed = true;
	va_start(arguments, format);
	answer("= error ", format, arguments, "");
	va_end(arguments);
}

void fail_errno(const char *format, ...)
{
	char reason[128];
	va_list arguments;

	snprintf(reason, sizeof reason, ": %s", strerror(errno));
	failed = true;
	va_start(arguments, format);
	answer("= error ", format, arguments, reason);
	va_end(arguments);
}

bool number(const char *word, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoull(word, &end, 0);
	if (errno || end == word || *end) {
		fail("%s is not a number", word);
		return false;
	}
	return true;
}

const char *join(struct words words, int first)
{
	static char text[LONGEST_LINE];
	size_t length = 0;

	text[0] = 0;
	for (int i = first; i < words.count && length < sizeof text; i++)
		length += snprintf(text + length, sizeof text - length, "%s%s", i > first ? " " : "", words.word[i]);
	return text;
}

static bool run_from(const struct command *commands, const char *name, struct words words)
{
	for (const struct command *c = commands; c->name; c++) {
		if (strcmp(c->name, name))
			continue;
		if (words.count < c->least || (c->most >= 0 && words.count > c->most))
			fail("%s: wrong number of words", name);
		else
			c->run(words);
		return true;
	}
	return false;
}

bool run_words(struct words words)
{
	static const struct command *const tables[] = {
		file_commands, pci_commands, vfio_commands, fault_commands, paging_commands, engine_commands, uio_commands,
		memory_commands, churn_commands, timing_commands, endpoint_test_commands, edu_commands, disk_commands, log_commands,
		process_commands, system_commands,
	};

	for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
		if (run_from(tables[i], words.word[0], (struct words){ words.count - 1, words.word + 1 }))
			return !failed;
	fail("%s: no such command", words.word[0]);
	return false;
}

void drain_line(void)
{
	tcdrain(fileno(out));
}

void take_line(int fd)
{
	in = fdopen(fd, "r");
	out = fdopen(dup(fd), "w");
}

void drop_line(void)
{
	close_range(STDERR_FILENO + 1, ~0U, 0);
	/* The streams write to the descriptor that they had. */
	out = fopen("/dev/null", "w");
}

static void run(char *text)
{
	char *word[MOST_WORDS], *rest = NULL;
	int count = 0;

	for (char *w = strtok_r(text, " \r\n", &rest); w && count < MOST_WORDS; w = strtok_r(NULL, " \r\n", &rest))
		word[count++] = w;
	if (count)
		run_words((struct words){ count, word });
}

static void mount_all(void)
{
	static const struct {
		const char *type, *where;
	} mounts[] = {
		{ "proc", "/proc" },
		{ "sysfs", "/sys" },
		{ "devtmpfs", "/dev" },
		{ "debugfs", "/sys/kernel/debug" },
	};

	for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
		mkdir(mounts[i].where, 0755);
		/* EBUSY: the kernel mounted it (CONFIG_DEVTMPFS_MOUNT). */
		if (mount(mounts[i].type, mounts[i].where, mounts[i].type, 0, NULL) && errno != EBUSY)
			fprintf(stderr, "init: cannot mount %s: %s\n", mounts[i].where, strerror(errno));
	}
}

static bool open_line(void)
{
	struct termios settings;
	int fd = -1;

	for (size_t i = 0; fd < 0 && i < sizeof command_lines / sizeof *command_lines; i++)
		fd = open(command_lines[i], O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 || tcgetattr(fd, &settings))
		return false;
	cfmakeraw(&settings);
	cfsetspeed(&settings, B115200);
	settings.c_cflag |= CLOCAL;
	if (tcsetattr(fd, TCSANOW, &settings))
		return false;
	take_line(fd);
	return in && out;
}

/* Carries commands out until the line ends, and with it the machine, or this process. */
static void serve(void)
{
	static char text[LONGEST_LINE];

	while (fgets(text, sizeof text, in))
		run(text);
	if (getpid() != 1)
		_exit(1);
	reboot(RB_POWER_OFF);
}

int main(int count, char **arguments)
{
	/* What "exec" starts has the line of the program before it. */
	if (getpid() != 1 && count == 2) {
		take_line(atoi(arguments[1]));
		ok("%s", "");
		serve();
	}
	mount_all();
	/* The kernel opened /dev/console for us only if the initramfs has the node. */
	int console = open("/dev/console", O_RDWR);
	for (int fd = 0; console >= 0 && fd <= 2; fd++)
		dup2(console, fd);

	if (!open_line()) {
		fprintf(stderr, "init: cannot open the second serial line: %s\n", strerror(errno));
		reboot(RB_POWER_OFF);
		return 1;
	}
	fputs("= ready\n", out);
	fflush(out);
	serve();
	return 1;
}
