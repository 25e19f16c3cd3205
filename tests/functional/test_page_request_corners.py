# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Page requests in a Linux guest, in rare cases: many at once, too few buffers, answers late or never."""

from itertools import combinations

from bases.paging import FIRST, IOVA, PAGE, SECOND, Call, PagingTest
from bases.sharing import own_machine
from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.control import endpoint_id
from lab_kit.vm.guest import Guest, GuestError, pattern

# 32 functions: 25 on bus 0, each of the others alone behind a root port of slot 2.
PORTS = range(7)
ON_BUS_0 = tuple(f"00:{slot:02x}.0" for slot in range(5, 30))
CROWD = (*ON_BUS_0, *(f"{1 + port:02x}:00.0" for port in PORTS))


class PageRequestCornerTest(PagingTest):
    """The patched driver, with page requests in unusual numbers and orders."""

    shares_machines = True

    def ask(self, pages: list[tuple[int, str]]) -> Call:
        """The first endpoint raises a group as it stands: addresses and kinds of access."""
        asker = self.connect()
        group = [{"iova": iova, "access": access} for iova, access in pages]
        return Call(lambda: asker.execute("page-request", endpoint=FIRST, pages=group)["response"])

    def read(self, function: str = FIRST, length: int = 16) -> Call:
        reader = self.connect()
        return Call(lambda: reader.dma_read(function, IOVA, length))

    def serve(self, guest: Guest, name: str, seed: int) -> None:
        """Maps the page that the next page request is for, and answers."""
        (fault,) = self.faults(guest, name)
        guest.map(name, int(fault["address"], 16), PAGE, "rw", seed)
        guest.run(f"answer {name} {fault['cookie']} success")

    def test_each_kind_of_access_and_each_combination_arrives_as_it_was_asked_for(self):
        _, guest, control = self.start_attached()
        kinds = ["".join(kind) for count in range(1, 5) for kind in combinations("rwxp", count)]
        call = self.ask([(IOVA + i * PAGE, kind) for i, kind in enumerate(kinds)])
        faults = self.faults(guest, "one")
        seen = {int(fault["address"], 16): fault["access"] for fault in faults}
        self.assertEqual(seen, {IOVA + i * PAGE: kind for i, kind in enumerate(kinds)})
        guest.run(f"answer one {faults[0]['cookie']} success")
        self.assertEqual(call.result(), "success")
        self.assert_answered(control, 1)

    @own_machine
    def test_32_endpoints_fault_at_once_and_one_is_never_answered(self):
        extra = []
        for port in PORTS:
            extra += ["-device", f"pcie-root-port,id=port{port},chassis={port},addr=2.{port},multifunction=on"]
            extra += ["-device", f"edu,bus=port{port}"]
        _, guest, control = self.start(
            "--page-response-timeout", "0", endpoints=CROWD, edus=ON_BUS_0, extra=extra
        )
        for function in CROWD:
            self.attach_table(guest, function, function)
        reads = {function: self.read(function) for function in CROWD}
        self.wait_until("all faults", lambda: control.counters()["page_request_groups_delivered"] == len(CROWD))
        for seed, function in enumerate(CROWD):
            if function == FIRST:
                continue
            self.serve(guest, function, seed)
            self.assertEqual(reads[function].result(), pattern(seed, 16))
        self.assertTrue(reads[FIRST].is_alive())
        # Only now does the first get its answer.
        (fault,) = self.faults(guest, FIRST)
        guest.run(f"answer {FIRST} {fault['cookie']} invalid")
        self.assert_refused("PageRequestFailed", reads[FIRST].result)
        self.assert_answered(control, len(CROWD))

    def test_success_without_a_mapping_makes_the_endpoint_ask_again(self):
        _, guest, control = self.start_attached()
        read = self.read()
        (fault,) = self.faults(guest, "one")
        guest.run(f"answer one {fault['cookie']} success")
        self.serve(guest, "one", 4)
        self.assertEqual(read.result(), pattern(4, 16))
        self.assert_answered(control, 2)

    @own_machine
    def test_answer_after_the_time_out_meets_nothing_and_is_no_error__x61(self):
        _, guest, control = self.start("--page-response-timeout", "1")
        self.attach_table(guest, "one", FIRST)
        read = self.read()
        (fault,) = self.faults(guest, "one")
        self.assert_refused("PageRequestFailed", read.result)
        guest.mark_log()
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(guest.lines("log page response failed"), [])
        counters = control.counters()
        self.assertEqual((counters["page_request_timeouts"], counters["page_response_stale"]), (1, 1))
        with self.assertRaises(GuestError):
            guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(control.counters()["page_response_stale"], 1)
        self.assert_clean(control)

    @own_machine
    def test_groups_beyond_the_limit_are_answered_at_once(self):
        _, guest, control = self.start_attached("--max-page-requests", "2")
        calls = [self.ask([(IOVA, "r")])]
        self.wait_until("the first", lambda: control.counters()["page_request_groups"] == 1)
        calls.append(self.ask([(IOVA + PAGE, "r")]))
        self.wait_until("the second", lambda: control.counters()["page_request_groups"] == 2)
        self.assertEqual(self.ask([(IOVA + 2 * PAGE, "r")]).result(), "invalid-request")
        self.assertEqual(control.counters()["page_request_over_quota"], 1)
        for fault in self.faults(guest, "one"):
            guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual([call.result() for call in calls], ["success", "success"])

    def test_two_event_buffers_are_enough_for_a_burst_of_groups__x41(self):
        _, guest, control = self.start_attached(queue_size=2)
        calls = [self.ask([(IOVA + 2 * i * PAGE, "r"), (IOVA + (2 * i + 1) * PAGE, "w")]) for i in range(16)]
        cookies: dict[str, list[str]] = {}
        while len(cookies) < len(calls):
            for fault in self.faults(guest, "one"):
                cookies.setdefault(fault["cookie"], []).append(fault["access"])
        self.assertEqual([sorted(pages) for pages in cookies.values()], [["r", "w"]] * len(calls))
        for cookie in cookies:
            guest.run(f"answer one {cookie} success")
        self.assertEqual([call.result() for call in calls], ["success"] * len(calls))
        self.assert_answered(control, len(calls))

    def test_group_that_two_event_buffers_cannot_hold_is_answered_at_once(self):
        _, guest, control = self.start_attached(queue_size=2)
        self.assertEqual(self.ask([(IOVA + i * PAGE, "r") for i in range(3)]).result(), "invalid-request")
        read = self.read()
        self.serve(guest, "one", 1)
        self.assertEqual(read.result(), pattern(1, 16))
        self.assertEqual(control.counters()["page_response"], 1)
        self.assert_clean(control)

    def test_attachment_without_a_fault_queue_refuses_and_tells_the_guest(self):
        _, guest, control = self.start("--page-response-timeout", "0")
        self.attach_vfio(guest, "plain", SECOND, "plain")
        guest.mark_log()
        asked = control.execute("page-request", endpoint=SECOND, pages=[{"iova": IOVA, "access": "r"}])
        self.assertEqual(asked["response"], "invalid-request")
        guest.wait_log(f"page fault from EP {endpoint_id(SECOND)} at {IOVA:#x} [R]")
        self.assert_clean(control)


class StockDriverTest(FunctionalTest):
    """The stock driver, which knows no page requests, in front of the same back-end."""

    kernel = staticmethod(lab.lab_kernel)

    def test_page_request_is_refused_and_the_guest_is_told(self):
        _, guest, control = self.start()
        self.assertEqual({"PAGE_REQUEST", "PASID"} & set(control.status()["features"]), set())
        self.attach_vfio(guest, "one", FIRST, "one")
        with self.assertRaises(GuestError):
            guest.run("table one one one")
        guest.mark_log()
        asked = control.execute("page-request", endpoint=FIRST, pages=[{"iova": IOVA, "access": "w"}])
        self.assertEqual(asked["response"], "invalid-request")
        guest.wait_log(f"page fault from EP {endpoint_id(FIRST)} at {IOVA:#x} [W]")
        counters = control.counters()
        self.assertEqual((counters["page_response"], counters["fault_reports"]), (0, 1))
        self.assert_clean(control)


if __name__ == "__main__":
    FunctionalTest.main()
