// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Modules, the DMA map benchmark, the clock, reboot. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "init.h"
#include "uapi.h"

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

const struct command system_commands[] = {
	{ "insmod", 1, -1, load_module },
	{ "rmmod", 1, 1, unload_module },
	{ "bench", 3, 3, benchmark },
	{ "clock", 0, 0, show_clock },
	{ "reboot", 0, 0, restart },
	{ "poweroff", 0, 0, power_off },
	{ NULL, 0, 0, NULL },
};
