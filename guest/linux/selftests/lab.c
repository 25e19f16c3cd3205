// SPDX-License-Identifier: GPL-2.0-only
/*
 * What emulated guests on a busy machine want of the kernel's selftests,
 * without a change of their source: ld's --wrap puts this between them and the
 * C library.
 */
#include <poll.h>
#include <sys/mman.h>
#include <sys/types.h>

#define HUGE_PAGE	(2UL << 20)

int __real_poll(struct pollfd *descriptors, nfds_t count, int timeout);
int __wrap_poll(struct pollfd *descriptors, nfds_t count, int timeout);
void *__real_mmap(void *address, size_t length, int protection, int flags, int file, off_t offset);
void *__wrap_mmap(void *address, size_t length, int protection, int flags, int file, off_t offset);

/*
 * The harness ends a test that has taken 30 seconds, which says something of
 * the machine. Who has started the tests decides for how long to wait.
 */
int __wrap_poll(struct pollfd *descriptors, nfds_t count, int timeout)
{
	return __real_poll(descriptors, count, timeout > 0 ? -1 : timeout);
}

/*
 * The buffers that devices copy between have a gigabyte. In pages of 4 KiB,
 * from a guest's memory that is not in order any more, that is 262,144 MAP
 * requests for each test; in huge pages it is 512 at most.
 */
void *__wrap_mmap(void *address, size_t length, int protection, int flags, int file, off_t offset)
{
	const int buffer = MAP_SHARED | MAP_ANONYMOUS;

	if ((flags & (buffer | MAP_PRIVATE)) == buffer && length % HUGE_PAGE == 0)
		flags |= MAP_HUGETLB;
	return __real_mmap(address, length, protection, flags, file, offset);
}
