/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* A test program that runs as init: the line protocol, and the commands of each file. See ../README.md. */
#ifndef INIT_H
#define INIT_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

/* The smallest page, of x86 and of the Arm kernel here. */
#define PAGE UINT64_C(4096)

/* The words of a command, without its name. */
struct words {
	int count;
	char **word;
};

/* A command: answers with exactly one call of ok() or one of the fail() functions. */
struct command {
	const char *name;
	int least, most;	/* words; most < 0: any number */
	void (*run)(struct words words);
};

/* Each ends with an entry without a name. */
extern const struct command file_commands[];
extern const struct command pci_commands[];
extern const struct command vfio_commands[];
extern const struct command fault_commands[];
extern const struct command paging_commands[];
extern const struct command engine_commands[];
extern const struct command uio_commands[];
extern const struct command memory_commands[];
extern const struct command churn_commands[];
extern const struct command timing_commands[];
extern const struct command endpoint_test_commands[];
extern const struct command edu_commands[];
extern const struct command disk_commands[];
extern const struct command log_commands[];
extern const struct command process_commands[];
extern const struct command system_commands[];

/* Runs the command that the first word names; false when its answer was an error. */
bool run_words(struct words words);
/* Waits until the answers have left: what ends the machine's life would swallow them. */
void drain_line(void);
/* From here on commands are read from that descriptor, and answered there. */
void take_line(int fd);
/* Closes all files but the first three, the command line too: answers go nowhere from here on. */
void drop_line(void);

/* A line of data in front of the answer. */
void data(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The answer. */
void ok(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The answer, with the meaning of errno after it. */
void fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A number, decimal or 0x hexadecimal; answers and returns false when it is none. */
bool number(const char *word, uint64_t *value);
/* The words from `first` on, separated by blanks; valid until the next call. */
const char *join(struct words words, int first);

/* What the VFIO commands have opened under a name; answer and return NULL when there is no such thing. */
struct device *device_named(const char *name);
struct table *table_named(const char *name);
struct space *space_named(const char *name);
/* Takes an open device in under a name; false and errno when there is no place. */
bool keep_device(const char *name, const struct device *device);
/* The memory behind [iova, iova + length), which must lie in one buffer of the address space. "process" is the address
 * space of this process. */
uint8_t *memory_at(const char *space, uint64_t iova, uint64_t length);
/* The PCI address of the open device with that number in iommufd. */
const char *device_address(uint32_t id);
/* Maps a part of a buffer in an address space, for reading and writing; false and errno, EFAULT without a buffer. */
bool map_from_buffer(const char *space, uint64_t iova, uint64_t length);

/* The memory of this process at an address, all of it mapped; answers and returns NULL when it is not. */
uint8_t *process_memory(uint64_t address, uint64_t length);

/* Byte `i` of the pattern of `seed`. */
uint8_t pattern(uint64_t seed, uint64_t i);
void fill_pattern(uint8_t *memory, uint64_t length, uint64_t seed);

/* CLOCK_MONOTONIC, in nanoseconds. */
uint64_t now_ns(void);

/* Reads a whole small file without its last newline; NULL and errno on failure; valid until the next call. */
const char *slurp(const char *path);
/* Writes to an existing file; false and errno on failure. */
bool spit(const char *path, const char *text);
/* The last component of where a symbolic link points to, or NULL; valid until the next call. */
const char *link_name(const char *path);
/* The full PCI address: 00:05.0 is 0000:00:05.0; valid until the next call. */
const char *pci_address(const char *word);

#endif
