// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Modules, the DMA map benchmark, programs, the clock, reboot, the kernel after this one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/kexec.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "init.h"
#include "uapi.h"

#define MOST_ARGUMENTS 16

static void load_module(struct words words)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, "/modules/%s.ko", words.word[0]);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fail_errno("%s", path);
	long failed = syscall(SYS_finit_module, fd, join(words, 1), 0);
	int reason = errno;
	close(fd);
	errno = reason;
	if (failed && errno != EEXIST)
		return fail_errno("%s", path);
	ok("%s", failed ? "already there" : "");
}

static void unload_module(struct words words)
{
	if (syscall(SYS_delete_module, words.word[0], O_NONBLOCK))
		return fail_errno("%s", words.word[0]);
	ok("%s", "");
}

static void benchmark(struct words words)
{
	static const char path[] = "/sys/kernel/debug/dma_map_benchmark";
	struct dma_benchmark_arg arg = { .node = -1, .dma_bits = 32 };
	uint64_t seconds, threads, pages;

	if (!number(words.word[0], &seconds) || !number(words.word[1], &threads) || !number(words.word[2], &pages))
		return;
	arg.seconds = seconds;
	arg.threads = threads;
	arg.pages = pages;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fail_errno("%s", path);
	int failed = ioctl(fd, DMA_BENCHMARK, &arg);
	int reason = errno;
	close(fd);
	errno = reason;
	if (failed)
		return fail_errno("DMA_MAP_BENCHMARK");
	ok("map_100ns=%llu map_stddev=%llu unmap_100ns=%llu unmap_stddev=%llu threads=%u seconds=%u pages=%u",
	   (unsigned long long)arg.map_100ns, (unsigned long long)arg.map_stddev, (unsigned long long)arg.unmap_100ns,
	   (unsigned long long)arg.unmap_stddev, arg.threads, arg.seconds, arg.pages);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * UINT64_C(1000000000) + now.tv_nsec;
}

static void show_clock(struct words words)
{
	(void)words;
	ok("%llu", (unsigned long long)now_ns());
}

/* Runs a program, and hands on what it writes. */
static void run_program(struct words words)
{
	char *arguments[MOST_ARGUMENTS + 1], *text = NULL;
	int ends[2], status;
	size_t size = 0;

	if (words.count > MOST_ARGUMENTS)
		return fail("%s: too many arguments", words.word[0]);
	for (int i = 0; i < words.count; i++)
		arguments[i] = words.word[i];
	arguments[words.count] = NULL;
	if (pipe2(ends, O_CLOEXEC))
		return fail_errno("pipe");
	pid_t child = fork();
	if (child < 0)
		return fail_errno("fork");
	if (!child) {
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		execv(arguments[0], arguments);
		_exit(127);
	}
	close(ends[1]);
	FILE *output = fdopen(ends[0], "r");
	for (ssize_t length; output && (length = getline(&text, &size, output)) > 0;)
		data("%.*s", (int)(text[length - 1] == '\n' ? length - 1 : length), text);
	free(text);
	if (output)
		fclose(output);
	if (waitpid(child, &status, 0) < 0)
		return fail_errno("wait");
	if (!WIFEXITED(status))
		return fail("%s: ended by signal %d", words.word[0], WTERMSIG(status));
	ok("%d", WEXITSTATUS(status));
}

static void restart(struct words words)
{
	(void)words;
	ok("%s", "");
	reboot(RB_AUTOBOOT);
}

static void power_off(struct words words)
{
	(void)words;
	ok("%s", "");
	reboot(RB_POWER_OFF);
}

/* The kernel that comes after this one. */
static void load_kernel(struct words words)
{
	bool for_crash = !strcmp(words.word[2], "crash");
	const char *command_line = join(words, 3);

	if (!for_crash && strcmp(words.word[2], "kexec"))
		return fail("%s is neither kexec nor crash", words.word[2]);
	int kernel = open(words.word[0], O_RDONLY | O_CLOEXEC);
	int initramfs = open(words.word[1], O_RDONLY | O_CLOEXEC);
	long failed = syscall(SYS_kexec_file_load, kernel, initramfs, strlen(command_line) + 1, command_line,
			      for_crash ? KEXEC_FILE_ON_CRASH : 0UL);
	int reason = errno;
	close(kernel);
	close(initramfs);
	errno = reason;
	if (failed)
		return fail_errno("kexec_file_load of %s and %s", words.word[0], words.word[1]);
	ok("%s", "");
}

static void go_on(struct words words)
{
	(void)words;
	ok("%s", "");
	drain_line();
	reboot(RB_KEXEC);
}

static void crash(struct words words)
{
	(void)words;
	ok("%s", "");
	drain_line();
	spit("/proc/sysrq-trigger", "c");
}

/* Where a function of the kernel is. The symbols of modules are not sorted. */
static void find_symbol(struct words words)
{
	uint64_t start = 0, end = UINT64_MAX, address;
	char name[512], line[1024];
	FILE *symbols = fopen("/proc/kallsyms", "re");

	if (!symbols)
		return fail_errno("%s", "/proc/kallsyms");
	while (!start && fgets(line, sizeof line, symbols))
		if (sscanf(line, "%" SCNx64 " %*c %511s", &address, name) == 2 && !strcmp(name, words.word[0]))
			start = address;
	rewind(symbols);
	while (fgets(line, sizeof line, symbols))
		if (sscanf(line, "%" SCNx64, &address) == 1 && address > start && address < end)
			end = address;
	fclose(symbols);
	if (!start)
		return fail("there is no %s", words.word[0]);
	ok("start=%#" PRIx64 " end=%#" PRIx64, start, end);
}

const struct command system_commands[] = {
	{ "insmod", 1, -1, load_module },
	{ "rmmod", 1, 1, unload_module },
	{ "run", 1, -1, run_program },
	{ "bench", 3, 3, benchmark },
	{ "clock", 0, 0, show_clock },
	{ "symbol", 1, 1, find_symbol },
	{ "reboot", 0, 0, restart },
	{ "poweroff", 0, 0, power_off },
	{ "kexec-load", 4, -1, load_kernel },
	{ "kexec", 0, 0, go_on },
	{ "crash", 0, 0, crash },
	{ NULL, 0, 0, NULL },
};
