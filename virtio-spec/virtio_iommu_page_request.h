/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Page requests, PASIDs and tables of the driver for virtio-iommu, draft 2.
 *
 * The C view of the layouts in the specification patches beside this file. It
 * goes with <linux/virtio_iommu.h>: structures that the extension changes
 * have names of their own here.
 */
#ifndef VIRTIO_IOMMU_PAGE_REQUEST_H
#define VIRTIO_IOMMU_PAGE_REQUEST_H

#include <linux/types.h>
#include <linux/virtio_iommu.h>

/* Feature bits */
#define VIRTIO_IOMMU_F_PAGE_REQUEST			16
#define VIRTIO_IOMMU_F_PASID				17
#define VIRTIO_IOMMU_F_ATTACH_TABLE			18

/* Request types */
#define VIRTIO_IOMMU_T_ATTACH_TABLE			0x06
#define VIRTIO_IOMMU_T_INVALIDATE			0x07
#define VIRTIO_IOMMU_T_PAGE_RESPONSE			0x08

/* ATTACH and DETACH flags */
#define VIRTIO_IOMMU_ATTACH_F_PAGE_REQUEST		(1 << 1)
#define VIRTIO_IOMMU_ATTACH_F_PASID			(1 << 2)
#define VIRTIO_IOMMU_DETACH_F_PASID			(1 << 2)

/* ATTACH: pasid was reserved[4] */
struct virtio_iommu_req_attach_pasid {
	struct virtio_iommu_req_head		head;
	__le32					domain;
	__le32					endpoint;
	__le32					flags;
	__le32					pasid;
	struct virtio_iommu_req_tail		tail;
};

/* DETACH: pasid and flags were reserved[8] */
struct virtio_iommu_req_detach_pasid {
	struct virtio_iommu_req_head		head;
	__le32					domain;
	__le32					endpoint;
	__le32					pasid;
	__le32					flags;
	struct virtio_iommu_req_tail		tail;
};

/* Probe properties */
#define VIRTIO_IOMMU_PROBE_T_PAGE_REQUEST		0x10
#define VIRTIO_IOMMU_PROBE_T_PASID			0x11
#define VIRTIO_IOMMU_PROBE_T_TABLE			0x12

struct virtio_iommu_probe_page_request {
	struct virtio_iommu_probe_property	head;
	__le32					flags;
	/* The most groups that wait for their answer at a time */
	__le32					max_pending;
};

#define VIRTIO_IOMMU_PASID_F_EXEC			(1 << 0)
#define VIRTIO_IOMMU_PASID_F_PRIVILEGED			(1 << 1)

struct virtio_iommu_probe_pasid {
	struct virtio_iommu_probe_property	head;
	__le32					flags;
	/* Bits of a PASID */
	__u8					width;
	__u8					reserved[3];
};

struct virtio_iommu_probe_table {
	struct virtio_iommu_probe_property	head;
	__le16					format;
	/* The most bits of a virtual address; bits of a physical one */
	__u8					input_bits;
	__u8					output_bits;
	__le64					page_size_mask;
	__le32					flags;
	__u8					reserved[4];
};

/* Events: <linux/virtio_iommu.h> has READ, WRITE, EXEC and ADDRESS */
#define VIRTIO_IOMMU_FAULT_F_PRIVILEGED			(1 << 3)
#define VIRTIO_IOMMU_FAULT_F_LAST			(1 << 4)
#define VIRTIO_IOMMU_FAULT_F_PAGE_REQUEST		(1 << 5)
#define VIRTIO_IOMMU_FAULT_F_PASID			(1 << 9)
#define VIRTIO_IOMMU_FAULT_F_GROUP_ID			(1 << 10)

/* The first 24 bytes are those of struct virtio_iommu_fault */
struct virtio_iommu_page_request {
	__u8					reason;
	__u8					reserved[3];
	__le32					flags;
	__le32					endpoint;
	/* Was reserved1 */
	__le32					pasid;
	__le64					address;
	__le16					group_id;
	__le16					reserved2;
	/* Bytes expected to be needed from address on, or 0 */
	__le32					length;
};

/* PAGE_RESPONSE */
#define VIRTIO_IOMMU_PAGE_RESPONSE_F_PASID		(1 << 0)

#define VIRTIO_IOMMU_PAGE_RESPONSE_SUCCESS		0
#define VIRTIO_IOMMU_PAGE_RESPONSE_INVALID_REQUEST	1
#define VIRTIO_IOMMU_PAGE_RESPONSE_FAILURE		2

struct virtio_iommu_req_page_response {
	struct virtio_iommu_req_head		head;
	__le32					endpoint;
	__le32					flags;
	__le32					pasid;
	__le16					group_id;
	__le16					code;
	__u8					reserved[8];
	struct virtio_iommu_req_tail		tail;
};

/* ATTACH_TABLE: flags are those of ATTACH, without BYPASS */
#define VIRTIO_IOMMU_TABLE_X86_64			0x10
#define VIRTIO_IOMMU_TABLE_ARM64			0x11

struct virtio_iommu_req_attach_table {
	struct virtio_iommu_req_head		head;
	__le32					domain;
	__le32					endpoint;
	__le32					flags;
	__le32					pasid;
	__le16					format;
	__u8					input_bits;
	/* Logarithm to base two of the smallest page */
	__u8					granule;
	/* Guest-physical address of the root */
	__le64					table;
	__le64					attributes;
	__u8					reserved[20];
	struct virtio_iommu_req_tail		tail;
};

/* INVALIDATE: the range is inclusive, and no flag is defined */
struct virtio_iommu_req_invalidate {
	struct virtio_iommu_req_head		head;
	__le32					domain;
	__le64					virt_start;
	__le64					virt_end;
	__le32					flags;
	struct virtio_iommu_req_tail		tail;
};

#endif /* VIRTIO_IOMMU_PAGE_REQUEST_H */
