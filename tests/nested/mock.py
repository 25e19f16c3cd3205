# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The kernel's test interface for iommufd (`drivers/iommu/iommufd/iommufd_test.h`): devices on its mock bus."""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass

# _IO(';', n)
IOMMU_IOAS_ALLOC = 0x3B81
IOMMU_TEST_CMD = 0x3BA0

OP_MD_CHECK_MAP = 3
OP_MOCK_DOMAIN_FLAGS = 12
OP_TRIGGER_IOPF = 15
OP_PASID_CHECK_HWPT = 21

DEVICE_PASID = 1 << 2

# IOMMU_PGFAULT_PERM_*
READ = 1
WRITE = 2

# IOMMUFD_PAGE_RESP_INVALID
RESPONSE_INVALID = 1

SYS_PIDFD_GETFD = 438

# Objects have the lowest free ids: none of a test is beyond this one.
MOST_OBJECTS = 128


@dataclass(frozen=True)
class MockDevice:
    """A mock device: the object that stands for it, and its id as a device of the context."""

    stdev: int
    dev: int


class Iommufd:
    """A context of the test, shared with the back-end."""

    def __init__(self) -> None:
        self.fd = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
        command = bytearray(struct.pack("<III", 12, 0, 0))
        fcntl.ioctl(self.fd, IOMMU_IOAS_ALLOC, command)
        # Where mock devices are born.
        self._nursery = struct.unpack("<III", command)[2]

    def _test(self, op: int, number: int, arguments: bytes) -> bytes:
        """A command of the test interface: its arguments as the kernel left them."""
        command = bytearray(struct.pack("<IIII48sII", 72, op, number, 0, arguments, 0, 0))
        fcntl.ioctl(self.fd, IOMMU_TEST_CMD, command)
        return bytes(command[16:64])

    def device(self) -> MockDevice:
        """A new device with PASIDs of 20 bits."""
        out = self._test(OP_MOCK_DOMAIN_FLAGS, self._nursery, struct.pack("<IIII", 0, 0, 0, DEVICE_PASID))
        stdev, _, dev, _ = struct.unpack_from("<IIII", out)
        return MockDevice(stdev, dev)

    def page_table(self, device: MockDevice) -> int:
        """The page table that a device is attached to."""
        for hwpt in range(1, MOST_OBJECTS):
            with contextlib.suppress(OSError):
                self._test(OP_PASID_CHECK_HWPT, device.stdev, struct.pack("<II", 0, hwpt))
                return hwpt
        raise AssertionError("a device has a page table")

    def maps(self, device: MockDevice, iova: int, length: int, address: int) -> bool:
        """Whether the device's page table leads from every page of the range to the page at `address` and on."""
        try:
            self._test(OP_MD_CHECK_MAP, self.page_table(device), struct.pack("<QQQ", iova, length, address))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def page_request(self, device: MockDevice, group: int, access: int, iova: int) -> None:
        """The device asks for a page, in a group of one request without PASID."""
        self._test(OP_TRIGGER_IOPF, 0, struct.pack("<IIIIQ", device.dev, 0, group, access, iova))

    def close(self) -> None:
        os.close(self.fd)


class FaultQueue:
    """A duplicate of the back-end's fault queue."""

    def __init__(self, pid: int):
        links = f"/proc/{pid}/fd"
        number = next(int(fd) for fd in os.listdir(links) if "iommufd-pgfault" in os.readlink(f"{links}/{fd}"))
        process = os.pidfd_open(pid)
        self._fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, process, number, 0)
        os.close(process)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")

    def takes_answer(self, cookie: int) -> bool:
        """Answers a group; whether the kernel was waiting for that."""
        try:
            os.write(self._fd, struct.pack("<II", cookie, RESPONSE_INVALID))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def close(self) -> None:
        os.close(self._fd)
