// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver of the fault engine for libvfio, the library of the kernel's vfio
 * selftests (tools/testing/selftests/vfio/lib). The engine is BAR 2 of a
 * software function of vhost-device-iommu; docs/fault-engine.md is its data
 * sheet and has the names that are used here.
 *
 * Copies are shared out to all engines of the function: each gets a chain of
 * descriptors of its own, one for each copy. When a chain has ended, each of
 * its descriptors must say that the engine has carried it out.
 */
#include <stddef.h>

#include <linux/errno.h>
#include <linux/io.h>
#include <linux/sizes.h>

#include <libvfio.h>

/* docs/soft-endpoint.md: the IDs of the function */
#define VENDOR			0x104c
#define DEVICE			0xb500

#define BAR			2
#define ENGINES			8
#define ENGINE_REGISTERS(n)	(0x100 + (n) * 0x100)

/* Registers of the function */
#define ID			0x00
#define ID_VALUE		0x45544c46
#define VERSION			0x04
#define ENGINE_COUNT		0x08

/* Registers of an engine */
#define CONTROL			0x00
#define   CONTROL_RESET		(1 << 0)
#define   CONTROL_INTERRUPT	(1 << 1)
#define STATUS			0x04
#define   STATUS_STATE(s)	((s) & 0xff)
#define   STATUS_OUTCOME(s)	((s) >> 8 & 0xff)
#define DOORBELL		0x08
#define VECTOR			0x0c
#define HEAD			0x10
#define INTERRUPT		0x20
#define   INTERRUPT_ENDED	(1 << 1)
#define   INTERRUPT_ERROR	(1 << 2)
#define COMPLETED		0x24
#define FAULT			0x30

enum operation { NOP = 0, COPY = 3 };
enum state { IDLE = 0 };
enum outcome { DONE = 1 };

struct descriptor {
	u8 operation;
	u8 group;
	u16 flags;
	u32 pasid;
	u64 address;
	u64 other;
	u32 length;
	u32 pieces;
	u64 next;
	u32 status;
	u32 done;
	u64 fault;
	u32 groups;
	u32 retries;
};

static_assert(sizeof(struct descriptor) == 64, "a descriptor has 64 bytes");
static_assert(offsetof(struct descriptor, status) == 40, "the engine writes from byte 40 on");

#define CHAIN			256
#define COPIES			(CHAIN * ENGINES)

struct descriptors {
	struct descriptor chain[ENGINES][CHAIN];
};

/* How many descriptors of each engine's chain are in use: there is one device in each process */
static u32 lengths[ENGINES];

static void *function_register(struct vfio_pci_device *device, u32 offset)
{
	return device->bars[BAR].vaddr + offset;
}

static void *engine_register(struct vfio_pci_device *device, u32 engine, u32 offset)
{
	return function_register(device, ENGINE_REGISTERS(engine) + offset);
}

static struct descriptor *chain_of(struct vfio_pci_device *device, u32 engine)
{
	struct descriptors *descriptors = device->driver.region.vaddr;

	return descriptors->chain[engine];
}

static int fault_engine_probe(struct vfio_pci_device *device)
{
	u16 command;
	u32 id;

	if (!vfio_pci_device_match(device, VENDOR, DEVICE))
		return -EINVAL;

	/* Nobody else has a function with these IDs and no BAR 2 to map */
	VFIO_ASSERT_NOT_NULL(device->bars[BAR].vaddr);

	command = vfio_pci_config_readw(device, PCI_COMMAND);
	vfio_pci_config_writew(device, PCI_COMMAND, command | PCI_COMMAND_MEMORY);
	id = readl(function_register(device, ID));
	vfio_pci_config_writew(device, PCI_COMMAND, command);

	return id == ID_VALUE ? 0 : -EINVAL;
}

/* No access and no interrupt of the engine comes after this */
static void reset_engine(struct vfio_pci_device *device, u32 engine)
{
	writel(CONTROL_RESET, engine_register(device, engine, CONTROL));
	VFIO_ASSERT_EQ(readl(engine_register(device, engine, STATUS)), 0);
	VFIO_ASSERT_EQ(readl(engine_register(device, engine, COMPLETED)), 0);
	VFIO_ASSERT_EQ(readl(engine_register(device, engine, INTERRUPT)), 0);
	lengths[engine] = 0;
}

static void reset_engines(struct vfio_pci_device *device)
{
	for (u32 engine = 0; engine < ENGINES; engine++)
		reset_engine(device, engine);
}

static void fault_engine_init(struct vfio_pci_device *device)
{
	VFIO_ASSERT_GE(device->driver.region.size, sizeof(struct descriptors));

	vfio_pci_config_writew(device, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
						    PCI_COMMAND_INTX_DISABLE);
	VFIO_ASSERT_EQ(readl(function_register(device, VERSION)), 1);
	VFIO_ASSERT_EQ(readl(function_register(device, ENGINE_COUNT)), ENGINES);
	reset_engines(device);
	vfio_pci_msix_enable(device, 0, device->msix_info.count);

	/* Not the first vector, so that one that was mixed up is found */
	device->driver.msi = device->msix_info.count / 2;
	device->driver.max_memcpy_size = SZ_1M;
	device->driver.max_memcpy_count = COPIES;
}

static void fault_engine_remove(struct vfio_pci_device *device)
{
	reset_engines(device);
	vfio_pci_msix_disable(device);
}

/* Adds a copy of the descriptor to the end of the chain */
static void append(struct vfio_pci_device *device, u32 engine, struct descriptor descriptor)
{
	struct descriptor *chain = chain_of(device, engine);
	u32 at = lengths[engine]++;

	VFIO_ASSERT_LT(at, CHAIN);
	chain[at] = descriptor;
	if (at)
		chain[at - 1].next = to_iova(device, &chain[at]);
}

static void start(struct vfio_pci_device *device, u32 engine, u32 control)
{
	u64 head = to_iova(device, chain_of(device, engine));

	writel((u32)head, engine_register(device, engine, HEAD));
	writel(head >> 32, engine_register(device, engine, HEAD + 4));
	writel(control, engine_register(device, engine, CONTROL));
	writel(1, engine_register(device, engine, DOORBELL));
}

static void fault_engine_memcpy_start(struct vfio_pci_device *device, iova_t src, iova_t dst, u64 size,
				      u64 count)
{
	reset_engines(device);

	for (u64 copy = 0; copy < count; copy++) {
		append(device, copy % ENGINES, (struct descriptor) {
			.operation = COPY,
			.address = src,
			.other = dst,
			.length = size,
		});
	}

	for (u32 engine = 0; engine < ENGINES; engine++) {
		if (lengths[engine])
			start(device, engine, 0);
	}
}

/*
 * Waits for the end of the engine's chain, and says whether all of it was
 * carried out. Where an access has failed, that descriptor is the last one.
 */
static bool wait_done(struct vfio_pci_device *device, u32 engine)
{
	struct descriptor *chain = chain_of(device, engine);
	u32 status, completed, outcome, causes;
	u64 fault;

	do {
		status = readl(engine_register(device, engine, STATUS));
	} while (STATUS_STATE(status) != IDLE);
	outcome = STATUS_OUTCOME(status);
	completed = readl(engine_register(device, engine, COMPLETED));

	/* They may come a moment after the state */
	do {
		causes = readl(engine_register(device, engine, INTERRUPT));
	} while (!causes);

	VFIO_ASSERT_GT(completed, 0);
	for (u32 at = 0; at < completed - 1; at++) {
		VFIO_ASSERT_EQ(chain[at].status, DONE);
		VFIO_ASSERT_EQ(chain[at].done, chain[at].length);
	}
	VFIO_ASSERT_EQ(chain[completed - 1].status, outcome);

	if (outcome == DONE) {
		VFIO_ASSERT_EQ(chain[completed - 1].done, chain[completed - 1].length);
		VFIO_ASSERT_EQ(completed, lengths[engine]);
		VFIO_ASSERT_EQ(causes, INTERRUPT_ENDED);
		return true;
	}

	fault = readl(engine_register(device, engine, FAULT + 4));
	fault = fault << 32 | readl(engine_register(device, engine, FAULT));
	VFIO_ASSERT_EQ(chain[completed - 1].fault, fault);
	VFIO_ASSERT_EQ(causes, INTERRUPT_ENDED | INTERRUPT_ERROR);
	dev_info(device, "engine %u: outcome %u at 0x%lx\n", engine, outcome, fault);
	return false;
}

static int fault_engine_memcpy_wait(struct vfio_pci_device *device)
{
	bool done = true;

	for (u32 engine = 0; engine < ENGINES; engine++) {
		if (lengths[engine])
			done &= wait_done(device, engine);
	}
	return done ? 0 : -EIO;
}

/* An engine interrupts once, at the end of its chain: a descriptor without INTERRUPT does not */
static void fault_engine_send_msi(struct vfio_pci_device *device)
{
	const u32 engine = ENGINES - 1;

	reset_engine(device, engine);
	append(device, engine, (struct descriptor) { .operation = NOP });
	writel(device->driver.msi, engine_register(device, engine, VECTOR));
	start(device, engine, CONTROL_INTERRUPT);
	VFIO_ASSERT_TRUE(wait_done(device, engine));
}

const struct vfio_pci_driver_ops fault_engine_ops = {
	.name = "fault_engine",
	.probe = fault_engine_probe,
	.init = fault_engine_init,
	.remove = fault_engine_remove,
	.memcpy_start = fault_engine_memcpy_start,
	.memcpy_wait = fault_engine_memcpy_wait,
	.send_msi = fault_engine_send_msi,
};
