// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* PCI functions, their drivers, and their IOMMU groups. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "init.h"

#define DEVICES "/sys/bus/pci/devices"
#define GROUPS "/sys/kernel/iommu_groups"

const char *pci_address(const char *word)
{
	static char address[32];

	/* One colon: without the segment. */
	bool is_short = strchr(word, ':') == strrchr(word, ':');
	snprintf(address, sizeof address, "%s%s", is_short ? "0000:" : "", word);
	return address;
}

/* Both are valid until their next call. */
static const char *device_path(const char *word, const char *file)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof path, DEVICES "/%s/%s", pci_address(word), file);
	return path;
}

static const char *device_link(const char *word, const char *file)
{
	const char *name = link_name(device_path(word, file));

	return name ? name : "none";
}

static unsigned device_id(const char *word, const char *file)
{
	const char *text = slurp(device_path(word, file));

	return text ? strtoul(text, NULL, 16) : 0;
}

static void devices(struct words words)
{
	struct dirent **entries;
	int count = scandir(DEVICES, &entries, NULL, alphasort);

	(void)words;
	if (count < 0)
		return fail_errno(DEVICES);
	for (int i = 0; i < count; i++) {
		const char *name = entries[i]->d_name;
		if (name[0] != '.') {
			char driver[64];
			snprintf(driver, sizeof driver, "%s", device_link(name, "driver"));
			data("%s %04x:%04x driver=%s group=%s", name, device_id(name, "vendor"),
			     device_id(name, "device"), driver, device_link(name, "iommu_group"));
		}
		free(entries[i]);
	}
	free(entries);
	ok("%s", "");
}

static void groups(struct words words)
{
	char path[PATH_MAX];
	DIR *all = opendir(GROUPS);

	(void)words;
	if (!all)
		return fail_errno(GROUPS);
	for (struct dirent *group; (group = readdir(all));) {
		if (group->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, GROUPS "/%s/type", group->d_name);
		const char *type = slurp(path);
		char members[1024] = "";
		size_t length = 0;
		snprintf(path, sizeof path, GROUPS "/%s/devices", group->d_name);
		DIR *in_group = opendir(path);
		for (struct dirent *device; in_group && (device = readdir(in_group));)
			if (device->d_name[0] != '.' && length < sizeof members)
				length += snprintf(members + length, sizeof members - length, "%s%s",
						   length ? "," : "", device->d_name);
		if (in_group)
			closedir(in_group);
		data("%s type=%s devices=%s", group->d_name, type ? type : "?", members);
	}
	closedir(all);
	ok("%s", "");
}

static void reserved(struct words words)
{
	const char *text = slurp(device_path(words.word[0], "iommu_group/reserved_regions"));

	if (!text)
		return fail_errno("%s", words.word[0]);
	while (*text) {
		int length = strcspn(text, "\n");
		data("%.*s", length, text);
		text += length + (text[length] == '\n');
	}
	ok("%s", "");
}

/* Takes a function away from its driver; without one this is no error. */
static bool release(const char *word)
{
	return spit(device_path(word, "driver/unbind"), pci_address(word)) || errno == ENOENT;
}

static void bind(struct words words)
{
	const char *driver = words.word[1];

	if (!release(words.word[0]))
		return fail_errno("cannot unbind %s", words.word[0]);
	if (!spit(device_path(words.word[0], "driver_override"), driver))
		return fail_errno("driver_override of %s", words.word[0]);
	if (!spit("/sys/bus/pci/drivers_probe", pci_address(words.word[0])))
		return fail_errno("cannot probe %s", words.word[0]);
	if (strcmp(device_link(words.word[0], "driver"), driver))
		return fail("%s did not take %s", driver, words.word[0]);
	ok("%s", "");
}

static void unbind(struct words words)
{
	if (!release(words.word[0]))
		return fail_errno("cannot unbind %s", words.word[0]);
	if (!spit(device_path(words.word[0], "driver_override"), "\n"))
		return fail_errno("driver_override of %s", words.word[0]);
	ok("%s", "");
}

/* A word of config space, whoever the driver is. */
static void config(struct words words)
{
	const char *path = device_path(words.word[0], "config");
	bool writes = words.count > 2;
	uint64_t offset, value = 0;

	if (!number(words.word[1], &offset) || (writes && !number(words.word[2], &value)))
		return;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fail_errno("%s", path);
	uint32_t word = value;
	ssize_t done = writes ? pwrite(fd, &word, sizeof word, offset) : pread(fd, &word, sizeof word, offset);
	close(fd);
	if (done != sizeof word)
		return fail_errno("%s at %#llx", path, (unsigned long long)offset);
	ok("%#x", word);
}

const struct command pci_commands[] = {
	{ "devices", 0, 0, devices },
	{ "groups", 0, 0, groups },
	{ "reserved", 1, 1, reserved },
	{ "bind", 2, 2, bind },
	{ "unbind", 1, 1, unbind },
	{ "config", 2, 3, config },
	{ NULL, 0, 0, NULL },
};
