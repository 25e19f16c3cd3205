// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Files, in sysfs above all. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "init.h"

const char *slurp(const char *path)
{
	static char text[65536];
	size_t length = 0;
	ssize_t got = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return NULL;
	while (length < sizeof text - 1 && (got = read(fd, text + length, sizeof text - 1 - length)) > 0)
		length += got;
	close(fd);
	if (got < 0)
		return NULL;
	if (length && text[length - 1] == '\n')
		length--;
	text[length] = 0;
	return text;
}

bool spit(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	bool written = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	int reason = errno;
	close(fd);
	errno = reason;
	return written;
}

const char *link_name(const char *path)
{
	static char target[PATH_MAX];
	ssize_t length = readlink(path, target, sizeof target - 1);

	if (length < 0)
		return NULL;
	target[length] = 0;
	char *slash = strrchr(target, '/');
	return slash ? slash + 1 : target;
}

static void cat(struct words words)
{
	const char *text = slurp(words.word[0]);

	if (!text)
		return fail_errno("%s", words.word[0]);
	while (*text) {
		int length = strcspn(text, "\n");
		data("%.*s", length, text);
		text += length + (text[length] == '\n');
	}
	ok("%s", "");
}

static void ls(struct words words)
{
	DIR *directory = opendir(words.word[0]);

	if (!directory)
		return fail_errno("%s", words.word[0]);
	for (struct dirent *entry; (entry = readdir(directory));)
		if (entry->d_name[0] != '.')
			data("%s", entry->d_name);
	closedir(directory);
	ok("%s", "");
}

static void show_link(struct words words)
{
	const char *name = link_name(words.word[0]);

	if (!name)
		return fail_errno("%s", words.word[0]);
	ok("%s", name);
}

static void write_file(struct words words)
{
	if (!spit(words.word[0], join(words, 1)))
		return fail_errno("%s", words.word[0]);
	ok("%s", "");
}

static void remove_file(struct words words)
{
	if (unlink(words.word[0]))
		return fail_errno("%s", words.word[0]);
	ok("%s", "");
}

const struct command file_commands[] = {
	{ "cat", 1, 1, cat },
	{ "ls", 1, 1, ls },
	{ "readlink", 1, 1, show_link },
	{ "write", 1, -1, write_file },
	{ "remove", 1, 1, remove_file },
	{ NULL, 0, 0, NULL },
};
