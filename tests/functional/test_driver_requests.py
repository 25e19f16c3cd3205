# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Linux's drivers negotiate the right features and send the right bytes: the back-end's log has those of every request."""

import itertools
import struct
from typing import TYPE_CHECKING

from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.control import Control, endpoint_id
from lab_kit.vm.guest import Guest
from lab_kit.vm.machine import ENDPOINTS
from lab_kit.vm.requests import (
    ATTACH,
    BYPASS,
    DETACH,
    HEAD,
    MAP,
    MAP_FIELDS,
    PROBE,
    READ,
    TAIL,
    UNMAP,
    WRITE,
    logged,
)

FIRST, SECOND = ENDPOINTS
IOVA = 0x100_0000
LENGTH = 0x4000

# Where requests are reserved, besides the head. The patched driver has the PASID there, and flags.
RESERVED = {ATTACH: slice(16, 20), DETACH: slice(12, 20), UNMAP: slice(24, 28), PROBE: slice(8, 72)}
PROBE_SIZE = 512
LAST_IOVA = 0xFF_FFFF_FFFF
DOMAINS = range(40, 50)

# Only a type checker sees the cases as a test case: a test runner is not to run them by themselves.
if TYPE_CHECKING:
    Base = FunctionalTest
else:
    Base = object


class DriverRequestCases(Base):
    """The cases; the classes below say on which kernel."""

    def start_busy(self) -> tuple[Guest, Control]:
        """A guest that has sent every type of request: with two endpoints, the second of them gone again."""
        ranges = ("--input-range", f"0:{LAST_IOVA:#x}", "--domain-range", f"{DOMAINS.start}:{DOMAINS.stop - 1}")
        _, guest, control = self.start("--log-level", "trace", *ranges)
        self.attach_vfio(guest, "first", FIRST, "one")
        guest.map("one", IOVA, LENGTH, "rw", 1)
        control.dma_read(FIRST, IOVA, LENGTH)
        guest.unmap("one", IOVA, LENGTH)
        self.attach_vfio(guest, "second", SECOND, "two")
        guest.run("close second")
        guest.run(f"write /sys/bus/pci/devices/0000:{SECOND}/remove 1")
        return guest, control

    def requests(self) -> list[tuple[bytes, int]]:
        return logged(self.directory / "backend.log")

    def test_driver_accepts_what_it_makes_use_of__f1_i13(self):
        _, control = self.start_busy()
        features = {"INPUT_RANGE", "DOMAIN_RANGE", "PROBE", "MAP_UNMAP"}
        self.assertEqual(features & set(control.status()["features"]), features)
        counters = control.counters()
        self.assertGreater(counters["map"], 0)
        self.assertGreater(counters["unmap"], 0)
        self.assert_clean(control)

    def test_every_endpoint_is_probed_before_it_is_attached__i14(self):
        self.start_busy()
        probed, attached = set(), set()
        for request, _ in self.requests():
            if request[0] == PROBE:
                probed.add(struct.unpack_from("<I", request, HEAD)[0])
            elif request[0] == ATTACH:
                (endpoint,) = struct.unpack_from("<I", request, HEAD + 4)
                self.assertIn(endpoint, probed)
                attached.add(endpoint)
        self.assertEqual(attached, {endpoint_id(FIRST), endpoint_id(SECOND)})

    def test_what_is_reserved_in_requests_is_zero__r18_d34_p53(self):
        self.start_busy()
        kinds = set()
        for request, room in self.requests():
            kinds.add(request[0])
            self.assertEqual(request[1:HEAD], bytes(3), request.hex())
            reserved = request[RESERVED.get(request[0], slice(0))]
            self.assertFalse(any(reserved), request.hex())
            self.assertEqual(room, TAIL + (PROBE_SIZE if request[0] == PROBE else 0), request.hex())
        self.assertEqual(kinds, {ATTACH, DETACH, MAP, UNMAP, PROBE})

    def test_endpoints_that_cannot_be_isolated_share_a_domain__a73(self):
        # Functions of a conventional device: nothing keeps one from the other's memory.
        together = ("00:05.0", "00:05.1")
        extra = ("-device", "edu,addr=5.0,multifunction=on", "-device", "edu,addr=5.1")
        _, guest, control = self.start(endpoints=(*together, SECOND), edus=(SECOND,), extra=extra)
        guest.open_vfio("first", together[0])
        for function in (together[1], SECOND):
            guest.run(f"bind {function} vfio-pci")
        guest.run("ioas one")
        seen = set()
        for change in ("attach first one", "detach first"):
            guest.run(change)
            first, second = (control.endpoint(function)["domain"] for function in together)
            self.assertEqual(first, second)
            self.assertIsNotNone(first)
            seen.add(first)
            if change.startswith("attach"):
                self.assertNotEqual(first, control.endpoint(SECOND)["domain"])
        self.assertEqual(len(seen), 2)
        self.assert_clean(control)

    def test_mappings_permit_what_was_asked_for__m74(self):
        _, guest, control = self.start("--log-level", "trace")
        self.attach_vfio(guest, "first", FIRST, "one")
        asked = {IOVA: ("r", READ), IOVA + LENGTH: ("w", WRITE), IOVA + 2 * LENGTH: ("rw", READ | WRITE)}
        for iova, (access, _) in asked.items():
            guest.map("one", iova, LENGTH, access, 1)
        flags = {}
        for request, _ in self.requests():
            if request[0] == MAP:
                _, first, _, _, flags[first] = struct.unpack_from(MAP_FIELDS, request, HEAD)
        self.assertLessEqual({iova: flag for iova, (_, flag) in asked.items()}.items(), flags.items())
        self.assert_clean(control)

    def test_domains_and_mappings_are_used_as_they_were_made__r22_a71_m46_u72_u76(self):
        """The requests once more, against what those before them have made."""
        self.start_busy()
        # Of each domain, where its endpoints are, and whether it is a bypass domain; its mappings, first to last address.
        endpoints: dict[int, tuple[int, int]] = {}
        mappings: dict[int, dict[int, int]] = {}
        for request, _ in self.requests():
            if request[0] != PROBE:
                self.assertIn(struct.unpack_from("<I", request, HEAD)[0], DOMAINS)
            if request[0] == ATTACH:
                domain, endpoint, flags = struct.unpack_from("<3I", request, HEAD)
                others = {kind for at, kind in endpoints.values() if at == domain}
                self.assertLessEqual(others, {flags & BYPASS}, request.hex())
                endpoints[endpoint] = (domain, flags & BYPASS)
            elif request[0] == DETACH:
                domain, endpoint = struct.unpack_from("<2I", request, HEAD)
                self.assertEqual(endpoints.pop(endpoint)[0], domain, request.hex())
            elif request[0] == MAP:
                domain, first, last, _, flags = struct.unpack_from(MAP_FIELDS, request, HEAD)
                self.assertIn((domain, 0), endpoints.values(), request.hex())
                self.assertTrue(first < last <= LAST_IOVA, request.hex())
                self.assertIn(flags, (READ, WRITE, READ | WRITE), request.hex())
                mappings.setdefault(domain, {})[first] = last
            elif request[0] == UNMAP:
                domain, first, last = struct.unpack_from("<I2Q", request, HEAD)
                self.assertIn((domain, 0), endpoints.values(), request.hex())
                mapped = mappings[domain]
                removed = sorted((start, end) for start, end in mapped.items() if start <= last and first <= end)
                self.assertTrue(removed, request.hex())
                for start, end in removed:
                    self.assertTrue(first <= start and end <= last, request.hex())
                    del mapped[start]
                for (_, end), (start, _) in itertools.pairwise(removed):
                    self.assertEqual(end + 1, start, request.hex())
            used = {domain for domain, _ in endpoints.values()}
            mappings = {domain: mapped for domain, mapped in mappings.items() if domain in used}


class StockDriverTest(DriverRequestCases, FunctionalTest):
    """The driver as it is in Linux."""

    kernel = staticmethod(lab.lab_kernel)


class PatchedDriverTest(DriverRequestCases, FunctionalTest):
    """The driver of guest/linux/."""

    kernel = staticmethod(lab.patched_kernel)


class DebianKernelTest(DriverRequestCases, FunctionalTest):
    """The driver of Debian's packaged kernel."""

    kernel = staticmethod(lab.debian_kernel)


if __name__ == "__main__":
    FunctionalTest.main()
