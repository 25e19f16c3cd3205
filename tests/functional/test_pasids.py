# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""PASIDs in a Linux guest with the driver of guest/linux/. A program in the guest attaches PASIDs of a software function
through VFIO."""

from bases.engine import (
    FUNCTION,
    IOVA,
    MARKERS,
    OUTSTANDING,
    PAGE,
    TARGET,
    EngineTest,
    engine_register,
    fields,
)
from lab_kit.vm import lab
from lab_kit.vm.guest import SECONDS, GuestError, pattern


class PasidTest(EngineTest):
    """Each PASID has an address space, with mappings and page requests that no other PASID sees."""

    kernel = staticmethod(lab.patched_kernel)
    shares_machines = True

    def test_each_pasid_has_its_own_memory_at_the_same_address__x5_x7_x16(self):
        guest, control = self.start_with_pasids(5, 0xFFFFF)
        attached = control.endpoint(FUNCTION)["pasids"]
        self.assertEqual([entry["pasid"] for entry in attached], [5, 0xFFFFF])
        for seed, space in enumerate(("one", "5", str(0xFFFFF))):
            guest.map(space, IOVA, PAGE, "rw", seed)
        for seed, flags in enumerate(({}, {"pasid": 5, "flags": "pasid"}, {"pasid": 0xFFFFF, "flags": "pasid"})):
            done = self.run_one(guest, "read", address=IOVA, length=64, **flags)
            self.assertEqual(done["status"], "done")
            self.assertEqual(self.run_one(guest, "write", address=TARGET, length=64)["status"], "done")
            self.assertEqual(guest.peek("one", TARGET, 64), pattern(seed, 64))
        # Writing with a PASID reaches its memory, and no other.
        self.run_one(guest, "read", address=TARGET, length=64)
        guest.run(f"poke one {TARGET:#x} {'5a' * 64}")
        self.run_one(guest, "read", address=TARGET, length=64)
        self.run_one(guest, "write", address=IOVA, length=64, pasid=5, flags="pasid")
        self.assertEqual(guest.peek("5", IOVA, 64), b"\x5a" * 64)
        self.assertEqual(guest.peek("one", IOVA, 64), pattern(0, 64))
        # Beyond the width of the property the driver does not ask.
        with self.assertRaises(GuestError):
            guest.run(f"attach-pasid one 5 {1 << 20}")
        guest.run("detach-pasid one 5")
        guest.run("detach one")
        self.assertEqual(control.counters()["requests_failed"], 0)
        self.assert_none_outstanding(guest, control)

    def test_page_requests_carry_the_pasid_and_every_kind_of_access__x58_x59(self):
        guest, control = self.start_with_pasids(7)
        kinds = {
            "pasid": ("read", "r"),
            "pasid,exec": ("read", "rx"),
            "pasid,privileged": ("read", "rp"),
            "pasid,exec,privileged": ("read", "rxp"),
            "pasid,privileged,page-requests": ("write", "wp"),
        }
        for index, (flags, (operation, access)) in enumerate(kinds.items()):
            with self.subTest(flags=flags):
                at = IOVA + index * PAGE
                self.begin(guest, operation, address=at, length=32, pasid=7, flags=f"{flags},page-requests")
                (fault,) = self.faults(guest, "7")
                self.assertEqual((fault["pasid"], fault["access"]), ("7", access))
                guest.map("7", at, PAGE, "rw", index)
                self.answer(guest, fault, "success", "7")
                self.assertEqual(self.end(guest)["status"], "done")
        self.assertEqual(control.counters()["requests_failed"], 0)
        self.assert_none_outstanding(guest, control)

    def test_a_detach_of_a_pasid_ends_its_groups_and_no_others(self):
        guest, control = self.start_with_pasids(7, 8)
        for engine, pasid in enumerate((7, 8)):
            ask = {"address": IOVA, "length": 8, "pasid": pasid, "flags": "pasid,page-requests"}
            self.begin(guest, "read", engine, **ask)
        self.begin(guest, "read", 2, address=IOVA, length=8, flags="page-requests")
        (of_8,), (plain,) = self.faults(guest, "8"), self.faults(guest)
        guest.run("detach-pasid one 7")
        # Its descriptor is in the address space without a PASID.
        self.assertEqual(self.end(guest, 0)["status"], "invalid-request")
        guest.map("8", IOVA, PAGE, "r", 1)
        self.answer(guest, of_8, "success", "8")
        self.assertEqual(self.end(guest, 1)["status"], "done")
        guest.map("one", IOVA, PAGE, "r", 1)
        self.answer(guest, plain, "success")
        self.assertEqual(self.end(guest, 2)["status"], "done")
        guest.mark_log()
        gone = self.run_one(guest, "read", address=IOVA, length=8, pasid=7, flags="pasid")
        self.assertEqual(gone["status"], "blocked")
        guest.wait_log(f"domain fault from EP 56 at {IOVA:#x} [R]")
        guest.run("attach-pasid one 7 7")
        guest.map("7", IOVA, PAGE, "r", 1)
        again = self.run_one(guest, "read", address=IOVA, length=8, pasid=7, flags="pasid")
        self.assertEqual(again["status"], "done")
        self.assertEqual(self.register(guest, OUTSTANDING), 0)
        self.assert_clean(control)

    def test_descriptors_can_live_in_the_memory_of_a_pasid(self):
        guest, control = self.start_with_pasids(9)
        guest.run(f"buffer 9 {IOVA:#x} {PAGE:#x} 0")
        guest.run(f"descriptor 9 {IOVA:#x} nop")
        guest.run(f"start one 0 {IOVA:#x} 9 page-requests")
        self.assertIn("access=r ", guest.lines(f"page-in 9 9 1 {SECONDS}")[0])
        self.assertEqual(self.outcome(guest), "done")
        self.assertEqual(fields(guest.run(f"completion 9 {IOVA:#x}"))["status"], "done")
        self.assert_none_outstanding(guest, control)

    def test_a_stop_marker_is_seen_by_nobody(self):
        guest, control = self.start_with_pasids(7)
        done = self.run_one(guest, "stop-marker", pasid=7, flags="pasid")
        self.assertEqual((done["status"], done["groups"]), ("done", "0"))
        self.assertEqual(self.register(guest, engine_register(0, MARKERS)), 1)
        self.assertEqual(control.counters()["page_request_groups"], 0)
        self.assert_none_outstanding(guest, control)


class PasidResetTest(EngineTest):
    """A device with PASIDs is reset. The kernel for Arm cannot suspend, so these tests run on x86 only."""

    kernel = staticmethod(lab.patched_kernel)

    def test_a_reset_keeps_pasids_and_their_number(self):
        """While there is a PASID, the system does not suspend: the driver counts them."""
        guest, control = self.start_with_pasids(5, 6)
        guest.run("reset one")
        self.assertEqual([entry["pasid"] for entry in control.endpoint(FUNCTION)["pasids"]], [5, 6])
        guest.run("write /sys/power/pm_test devices")
        guest.run("detach-pasid one 5")
        with self.assertRaisesRegex(GuestError, "busy"):
            guest.run("write /sys/power/state freeze")
        guest.run("detach-pasid one 6")
        guest.run("write /sys/power/state freeze")
        guest.run("write /sys/power/pm_test none")
        self.assertEqual(control.counters()["requests_failed"], 0)
        self.assert_none_outstanding(guest, control)


if __name__ == "__main__":
    EngineTest.main()
