# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tests of a class share a machine. If a test leaves something behind, that test fails, and the next one has another
machine. The machines here are stand-ins; no guest is started."""

import copy
import pathlib
import socket
import types
import unittest
from unittest import mock

from bases import sharing
from bases.sharing import own_machine
from bases.testcase import FunctionalTest
from lab_kit.vm.control import Control
from lab_kit.vm.guest import GuestError
from lab_kit.vm.lines import Console

FUNCTION = "0000:00:05.0"
REPORT = "WARNING: possible circular locking dependency detected"
IDLE = {"id": 40, "state": "attached", "domain": 1, "page_requests": False, "pasids": []}


class StandInControl(Control):
    """A control socket with fixed answers."""

    def __init__(self) -> None:
        self._before = {}
        self.answers = {
            "counters": {"map": 0, "fault_reports": 0},
            "status": {
                "connected": True,
                "memory": [],
                "domains": [{"id": 1, "kind": "paging", "mappings": 0, "bytes": 0, "endpoints": [40]}],
                "endpoints": [dict(IDLE)],
            },
        }

    def execute(self, command, descriptors=(), **arguments):
        return copy.deepcopy(self.answers[command])


class StandInGuest:
    """The program in a guest: a process for a test, a device, and a console."""

    def __init__(self, console: socket.socket) -> None:
        self._console = console
        self.driver = "none"
        self.children = 0
        self.strays = 0

    def log(self, text: str) -> None:
        self._console.sendall(f"{text}\r\n".encode())

    def run(self, command: str) -> str:
        name, _, rest = command.partition(" ")
        match name:
            case "child":
                self.children += 1
            case "kill":
                self.children -= 1
                return "signal 9"
            case "alone" if self.strays:
                raise GuestError("alone: another process is running")
            case "log-write":
                self.log(rest)
            case "bind":
                self.driver = rest.split()[1]
            case "unbind":
                self.driver = "none"
        return ""

    def lines(self, command: str) -> list[str]:
        return [f"{FUNCTION} 1234:11e8 driver={self.driver} group=0"] if command == "devices" else ["0 type=DMA"]


class StandInMachine:
    """A machine and the back-end in front of it."""

    def __init__(self, directory: pathlib.Path) -> None:
        ours, theirs = socket.socketpair()
        self.console = Console(ours, (directory / "console.log").open("ab"))
        self._line = theirs
        self.guest = StandInGuest(theirs)
        self.config = types.SimpleNamespace(functions={}, endpoints=(FUNCTION,))
        self.control = StandInControl()
        self.descriptors = 20
        self.closed = False
        # Said when it ends.
        self.last_words = ""

    @property
    def kernel_log(self) -> str:
        return self.console.text

    def close(self) -> None:
        if not self.closed:
            if self.last_words:
                self.guest.log(self.last_words)
            self._line.close()
            self.console.close()
        self.closed = True


class Case(FunctionalTest):
    """A class whose machines are stand-ins; `machines` has all that were started."""

    machines: list[StandInMachine]
    shares_machines = True
    machine_type = types.SimpleNamespace(qemu=lambda: None, init=lambda: None)  # type: ignore[assignment]
    backend = staticmethod(lambda: pathlib.Path())
    kernel = staticmethod(lambda: None)  # type: ignore[assignment]

    def start(self, *options):
        def make():
            machine = StandInMachine(self.directory)
            self.machines.append(machine)
            self._at_end(machine.close)
            if not self._making:
                self.addCleanup(self._check, machine)
            # Where the number of a process is wanted, the machine stands in for it.
            process = types.SimpleNamespace(pid=machine)
            return types.SimpleNamespace(control=machine.control, process=process), machine

        return self.shared(options, make)[1]


def starts(test: Case) -> None:
    """A test that does nothing else."""
    test.start()


class SharingTest(unittest.TestCase):
    """Small classes of tests, run as a test runner runs them."""

    def run_class(self, **tests) -> unittest.TestResult:
        """Runs functions as the tests of a class, in the order of their names."""
        self.machines: list[StandInMachine] = []
        case = type("Tests", (Case,), {"machines": self.machines, **{f"test_{name}": test for name, test in tests.items()}})
        result = unittest.TestResult()
        with (
            mock.patch.object(sharing, "SECONDS", 0.1),
            mock.patch.object(sharing, "descriptors", lambda machine: machine.descriptors),
        ):
            unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        self.assertTrue(all(machine.closed for machine in self.machines))
        return result

    def failed(self, result: unittest.TestResult) -> list[str]:
        return [getattr(test, "_testMethodName", str(test)) for test, _ in result.failures + result.errors]

    def test_tests_with_the_same_options_have_one_machine(self):
        result = self.run_class(a=starts, b=starts, c=starts)
        self.assertEqual((result.testsRun, self.failed(result), len(self.machines)), (3, [], 1))
        self.assertEqual(self.machines[0].guest.children, 0)

    def test_other_options_mean_another_machine_and_few_wait(self):
        def start(option):
            def test(test):
                waiting = [machine for machine in test.machines if not machine.closed]
                test.assertLessEqual(len(waiting), sharing.MOST)
                test.start(option)

            return test

        result = self.run_class(a=start(1), b=start(2), c=start(1), d=start(3), e=start(4), f=start(4), g=start(1))
        self.assertEqual(self.failed(result), [])
        # The first, 2, 3, 4; the first was ended to make room.
        self.assertEqual(len(self.machines), 5)

    def test_a_test_can_have_a_machine_to_itself(self):
        alone = own_machine(lambda test: starts(test))
        result = self.run_class(a=starts, b=alone, c=starts)
        self.assertEqual((self.failed(result), len(self.machines)), ([], 2))

    def test_a_class_shares_only_if_it_says_so(self):
        with mock.patch.object(Case, "shares_machines", False):
            self.run_class(a=starts, b=starts)
        self.assertEqual(len(self.machines), 2)

    def test_one_test_of_a_class_starts_one_machine_and_ends_it(self):
        self.machines = []
        case = type("Tests", (Case,), {"machines": self.machines, "test_a": starts})
        result = unittest.TestResult()
        with mock.patch.object(sharing, "descriptors", lambda machine: machine.descriptors):
            unittest.TestSuite([case("test_a")]).run(result)
        self.assertTrue(result.wasSuccessful())
        self.assertEqual([machine.closed for machine in self.machines], [True])

    def test_after_a_failure_an_error_or_a_failed_part_the_next_test_has_another_machine(self):
        def fails(test):
            test.start()
            test.fail("on purpose")

        def has_an_error(test):
            test.start()
            raise OSError("on purpose")

        def has_a_part_that_fails(test):
            test.start()
            with test.subTest():
                test.fail("on purpose")

        def fails_afterwards(test):
            test.start()
            test.addCleanup(test.fail, "on purpose")

        for bad in (fails, has_an_error, has_a_part_that_fails, fails_afterwards):
            with self.subTest(bad.__name__):
                result = self.run_class(a=bad, b=starts)
                self.assertEqual(len(self.machines), 2)
                self.assertEqual(len(result.failures + result.errors), 1)

    def test_a_test_that_is_skipped_halfway_is_no_failure(self):
        def skips(test):
            test.start()
            test.skipTest("on purpose")

        result = self.run_class(a=skips, b=starts)
        self.assertEqual((len(result.skipped), self.failed(result), len(self.machines)), (1, [], 1))

    def left_behind(self, change, words: str) -> None:
        """A test that changes the machine fails, and says how; the one after it starts another machine and passes."""

        def bad(test):
            change(test.start())

        result = self.run_class(a=starts, b=bad, c=starts)
        self.assertEqual((self.failed(result), len(self.machines)), (["test_b"], 2))
        ((_, reason),) = result.failures + result.errors
        self.assertIn(words, reason)
        self.assertIn("the same machine ran before: test_a", reason)

    def status(self, machine: StandInMachine) -> dict:
        return machine.control.answers["status"]

    def test_a_mapping_that_stays_is_its_tests_failure(self):
        self.left_behind(lambda machine: self.status(machine)["domains"][0].update(mappings=1), '"mappings": 1')

    def test_a_domain_that_stays_is_its_tests_failure(self):
        more = {"id": 9, "kind": "paging", "mappings": 0, "bytes": 0, "endpoints": []}
        self.left_behind(lambda machine: self.status(machine)["domains"].append(more), "domains after:  2")

    def test_an_endpoint_in_another_state_is_its_tests_failure(self):
        for name, value in (("state", "failed"), ("page_requests", True), ("pasids", [{"pasid": 5}])):
            with self.subTest(name):
                self.left_behind(lambda machine: self.status(machine)["endpoints"][0].update({name: value}), f'"{name}"')

    def test_memory_or_a_connection_that_is_gone_is_its_tests_failure(self):
        self.left_behind(lambda machine: self.status(machine).update(connected=False), "connected after:  false")
        self.left_behind(lambda machine: self.status(machine).update(memory=[1]), "memory after:  [1]")

    def test_a_descriptor_that_the_back_end_keeps_is_its_tests_failure(self):
        self.left_behind(lambda machine: setattr(machine, "descriptors", 21), "descriptors of the back-end after:  21")

    def test_a_process_that_stays_in_the_guest_is_its_tests_failure(self):
        self.left_behind(lambda machine: setattr(machine.guest, "strays", 1), "another process is running")

    def test_a_report_in_the_guests_log_is_its_tests_failure(self):
        self.left_behind(lambda machine: machine.guest.log(REPORT), REPORT)

    def test_a_report_after_the_last_test_is_the_classs_failure(self):
        def last(test):
            test.start().last_words = REPORT

        result = self.run_class(a=starts, b=last)
        self.assertEqual(len(result.errors), 1)
        self.assertIn(REPORT, result.errors[0][1])
        self.assertIn("after test_a, test_b", result.errors[0][1])

    def test_a_function_has_its_driver_again(self):
        def takes(test):
            machine = test.start()
            machine.guest.run(f"bind {FUNCTION} vfio-pci")

        result = self.run_class(a=takes, b=lambda test: test.assertEqual(test.start().guest.driver, "none"))
        self.assertEqual((self.failed(result), len(self.machines)), ([], 1))

    def test_numbers_of_domains_may_change(self):
        def moves(test):
            status = test.start().control.answers["status"]
            status["domains"][0]["id"] = status["endpoints"][0]["domain"] = 7

        result = self.run_class(a=moves, b=starts)
        self.assertEqual((self.failed(result), len(self.machines)), ([], 1))

    def test_counters_begin_with_zeroes(self):
        def counts(test):
            control = test.start().control
            test.assertEqual(control.counters()["map"], 0)
            control.answers["counters"]["map"] += 3
            test.assertEqual(control.counters()["map"], 3)

        result = self.run_class(a=counts, b=counts)
        self.assertEqual((self.failed(result), len(self.machines)), ([], 1))

    def test_a_kernel_that_may_be_silent_about_faults_is_not_used_again(self):
        def faults(test):
            test.start().control.answers["counters"]["fault_reports"] += sharing.MOST_FAULTS + 1

        result = self.run_class(a=faults, b=starts)
        self.assertEqual((self.failed(result), len(self.machines)), ([], 2))

    def test_directories_are_removed(self):
        directories = []

        def look(test):
            test.start()
            directories.append(test.directory)
            test.assertTrue(test.directory.is_dir())

        self.run_class(a=look, b=look)
        self.assertEqual(directories[0], directories[1])
        self.assertFalse(directories[0].exists())


if __name__ == "__main__":
    FunctionalTest.main()
