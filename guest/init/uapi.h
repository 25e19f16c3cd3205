/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * What this program uses of the kernel's interfaces, in our own words: distributions' headers are older than the kernels
 * that we run. Sources: Documentation/driver-api/vfio.rst, Documentation/userspace-api/iommufd.rst.
 */
#ifndef UAPI_H
#define UAPI_H

#include <linux/ioctl.h>
#include <stdint.h>

/* VFIO: groups and containers. */
#define VFIO_IO(n) _IO(';', 100 + (n))
#define VFIO_CONTAINER_SET_IOMMU VFIO_IO(2)
#define VFIO_GROUP_STATUS VFIO_IO(3)
#define VFIO_GROUP_JOIN_CONTAINER VFIO_IO(4)
#define VFIO_GROUP_LEAVE_CONTAINER VFIO_IO(5)
#define VFIO_GROUP_DEVICE_FD VFIO_IO(6)
#define VFIO_TYPE1_INFO VFIO_IO(12)
#define VFIO_TYPE1_MAP VFIO_IO(13)
#define VFIO_TYPE1_UNMAP VFIO_IO(14)

#define VFIO_TYPE1V2 3
#define VFIO_GROUP_VIABLE 1
#define VFIO_MAP_READ 1
#define VFIO_MAP_WRITE 2
#define VFIO_INFO_CAPS 2
#define VFIO_INFO_CAP_RANGES 1

struct vfio_group_status_arg {
	uint32_t argsz, flags;
};

struct vfio_map_arg {
	uint32_t argsz, flags;
	uint64_t vaddr, iova, size;
};

struct vfio_unmap_arg {
	uint32_t argsz, flags;
	uint64_t iova, size;
};

struct vfio_info_arg {
	uint32_t argsz, flags;
	uint64_t page_sizes;
	uint32_t cap_offset, pad;
};

struct vfio_cap {
	uint16_t id, version;
	uint32_t next;
};

struct vfio_cap_ranges {
	struct vfio_cap head;
	uint32_t count, pad;
	struct {
		uint64_t start, last;
	} range[];
};

/* VFIO: device files and iommufd. */
#define VFIO_DEVICE_BIND VFIO_IO(18)
#define VFIO_DEVICE_ATTACH VFIO_IO(19)
#define VFIO_DEVICE_DETACH VFIO_IO(20)

struct vfio_bind_arg {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t devid;
};

struct vfio_attach_arg {
	uint32_t argsz, flags, pt_id;
};

#define VFIO_ATTACH_PASID 1

struct vfio_pasid_arg {
	uint32_t argsz, flags, pt_id, pasid;
};

struct vfio_detach_arg {
	uint32_t argsz, flags;
};

struct vfio_detach_pasid_arg {
	uint32_t argsz, flags, pasid;
};

/* VFIO: registers and interrupts. */
#define VFIO_DEVICE_REGION VFIO_IO(8)
#define VFIO_DEVICE_IRQS VFIO_IO(10)
#define VFIO_DEVICE_RESET_ALL VFIO_IO(11)

#define VFIO_CONFIG_REGION 7
#define VFIO_MSIX_INTERRUPTS 2
#define VFIO_IRQS_EVENTFD 4
#define VFIO_IRQS_TRIGGER 32

#define PCI_COMMAND_OFFSET 4
#define PCI_COMMAND_MEMORY_BIT 2
#define PCI_COMMAND_MASTER_BIT 4

struct vfio_region_arg {
	uint32_t argsz, flags, index, cap_offset;
	uint64_t size, offset;
};

struct vfio_irqs_arg {
	uint32_t argsz, flags, index, start, count;
	uint8_t data[];
};

/* iommufd. */
#define IOMMUFD_DESTROY _IO(';', 0x80)
#define IOMMUFD_IOAS_ALLOC _IO(';', 0x81)
#define IOMMUFD_IOAS_RANGES _IO(';', 0x84)
#define IOMMUFD_IOAS_MAP _IO(';', 0x85)
#define IOMMUFD_IOAS_UNMAP _IO(';', 0x86)
#define IOMMUFD_HWPT_ALLOC _IO(';', 0x89)
#define IOMMUFD_FAULT_QUEUE_ALLOC _IO(';', 0x8e)

#define IOMMUFD_MAP_FIXED 1
#define IOMMUFD_MAP_WRITE 2
#define IOMMUFD_MAP_READ 4
#define IOMMUFD_HWPT_FAULT_ID_VALID 4
#define IOMMUFD_HWPT_PASID 8
#define IOMMUFD_FAULT_PASID_VALID 1
#define IOMMUFD_FAULT_LAST_PAGE 2

struct iommufd_destroy_arg {
	uint32_t size, id;
};

struct iommufd_ioas_alloc_arg {
	uint32_t size, flags, ioas;
};

struct iommufd_range {
	uint64_t start, last;
};

struct iommufd_ranges_arg {
	uint32_t size, ioas, count, reserved;
	uint64_t ranges, alignment;
};

struct iommufd_map_arg {
	uint32_t size, flags, ioas, reserved;
	uint64_t vaddr, length, iova;
};

struct iommufd_unmap_arg {
	uint32_t size, ioas;
	uint64_t iova, length;
};

struct iommufd_hwpt_alloc_arg {
	uint32_t size, flags, dev_id, pt_id, hwpt, reserved, data_type, data_len;
	uint64_t data;
	uint32_t fault_id, reserved2;
};

struct iommufd_fault_queue_arg {
	uint32_t size, flags, fault_id;
	int32_t fd;
};

/* What a fault queue's file is read for, and what is written to it. */
struct iommufd_fault {
	uint32_t flags, dev_id, pasid, group, perm, reserved;
	uint64_t address;
	uint32_t length, cookie;
};

struct iommufd_fault_answer {
	uint32_t cookie, code;
};

/* The DMA map benchmark (CONFIG_DMA_MAP_BENCHMARK). */
struct dma_benchmark_arg {
	uint64_t map_100ns, map_stddev, unmap_100ns, unmap_stddev;
	uint32_t threads, seconds;
	int32_t node;
	uint32_t dma_bits, direction, transfer_ns, pages;
	uint8_t reserved[76];
};
#define DMA_BENCHMARK _IOWR('d', 1, struct dma_benchmark_arg)

/* The driver pci_endpoint_test. */
#define PCITEST_INTX_IRQ _IO('P', 0x2)
#define PCITEST_MSI_IRQ _IOW('P', 0x3, int)
#define PCITEST_WRITE _IOW('P', 0x4, unsigned long)
#define PCITEST_READ _IOW('P', 0x5, unsigned long)
#define PCITEST_COPY _IOW('P', 0x6, unsigned long)
#define PCITEST_MSIX_IRQ _IOW('P', 0x7, int)
#define PCITEST_SET_IRQ_TYPE _IOW('P', 0x8, int)

struct pcitest_transfer_arg {
	unsigned long size;
	unsigned char flags;
};

_Static_assert(sizeof(struct vfio_info_arg) == 24, "VFIO_IOMMU_GET_INFO");
_Static_assert(sizeof(struct vfio_region_arg) == 32, "VFIO_DEVICE_GET_REGION_INFO");
_Static_assert(sizeof(struct vfio_irqs_arg) == 20, "VFIO_DEVICE_SET_IRQS");
_Static_assert(sizeof(struct iommufd_map_arg) == 40, "IOMMU_IOAS_MAP");
_Static_assert(sizeof(struct iommufd_ranges_arg) == 32, "IOMMU_IOAS_IOVA_RANGES");
_Static_assert(sizeof(struct iommufd_hwpt_alloc_arg) == 48, "IOMMU_HWPT_ALLOC");
_Static_assert(sizeof(struct iommufd_fault) == 40, "struct iommu_hwpt_pgfault");
_Static_assert(sizeof(struct dma_benchmark_arg) == 136, "DMA_MAP_BENCHMARK");

#endif
