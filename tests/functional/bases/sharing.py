# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Machines that several tests of a class use, one after the other: most of a test's time is the start of Linux.

    take ── begin ── the test ── end ── put ── retire   the test passed, and left everything as it was
                        └─────────┴──── close           anything else: the next test starts another machine

Each test acts in the guest through a process that ends with the test. If the test leaves something behind nevertheless,
that test fails, and the next one does not: `end` compares the back-end and the guest with their state at the start.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

from lab_kit.vm.backend import Backend
from lab_kit.vm.guest import TIMEOUT
from lab_kit.vm.machine import Machine

# How many machines wait for a test with their options.
MOST = 2
# Linux prints at most 10 lines of faults in 5 s (DEFAULT_RATELIMIT_BURST), and tests wait for their lines.
MOST_FAULTS = 7
# Until the kernel and the back-end are done with what a process had open.
SECONDS = TIMEOUT


class SharedMachine:
    """A back-end with a machine behind it, and what both look like between tests."""

    def __init__(self, directory: pathlib.Path, keep: bool, check: Callable[[Machine], None]):
        self.directory = directory
        self._check = check
        self.tests: list[str] = []
        # Ends all that was started for it.
        self.stack = contextlib.ExitStack()
        if not keep:
            self.stack.callback(shutil.rmtree, directory)
        self.backend: Backend
        self.machine: Machine
        self._baseline: dict[str, Any] = {}

    def started(self, backend: Backend, machine: Machine) -> None:
        """Takes the machine over, as it is before the first test."""
        self.backend, self.machine = backend, machine
        # Where the IOMMU's driver came late, as with Debian's kernel, a function has its group with its first driver.
        for line in machine.guest.lines("devices"):
            address, _, driver, group = line.split()
            function = address.removeprefix("0000:")
            if (driver, group) == ("driver=none", "group=none") and function in machine.config.endpoints:
                machine.guest.bind_vfio(function)
                machine.guest.run(f"unbind {function}")
        self._baseline = self.look()

    def begin(self, test: str) -> None:
        """From here on the machine belongs to a test, and counters begin with zeroes."""
        self.tests.append(test)
        with (self.directory / "tests.txt").open("a") as file:
            file.write(f"{test}\n")
        self.mark(f"begin {test}")
        self.backend.control.count_from_here()
        self.machine.guest.run("child")

    def end(self, restore: Callable[[Machine], None]) -> None:
        """Takes away what the test has made. Raises `AssertionError` if the test leaves anything behind."""
        guest = self.machine.guest
        answer = guest.run("kill")
        if answer != "signal 9":
            raise AssertionError(f"the test's process in the guest: {answer}")
        guest.run("alone")
        self._give_functions_back()
        restore(self.machine)
        deadline = time.monotonic() + SECONDS
        while (found := self.look()) != self._baseline:
            if time.monotonic() > deadline:
                raise AssertionError(f"the test leaves something behind:\n{difference(self._baseline, found)}")
            time.sleep(0.02)
        self.mark("end")

    def check_log(self) -> None:
        """Raises `AssertionError` if the guest's log has a report that no test has been told of yet."""
        self._check(self.machine)
        self.machine.console.forget()

    def mark(self, text: str) -> None:
        """Writes a line to the guest's log, and waits for it on the console: what was logged before is there too."""
        line = f"lab: {len(self.tests)}: {text}"
        self.machine.guest.run(f"log-write {line}")
        self.machine.console.wait_for(re.escape(line), TIMEOUT)

    def _give_functions_back(self) -> None:
        """Each function of the guest gets the driver that it had, or none."""
        guest = self.machine.guest
        before = {line.split()[0]: line.split()[2] for line in self._baseline["guest's devices"]}
        for line in guest.lines("devices"):
            function, _, driver, *_ = line.split()
            wanted = before.get(function, driver)
            if driver != wanted:
                name = wanted.removeprefix("driver=")
                guest.run(f"unbind {function}" if name == "none" else f"bind {function} {name}")

    def look(self) -> dict[str, Any]:
        """What has to be the same between tests: numbers of domains are not."""
        control, guest = self.backend.control, self.machine.guest
        status = control.status()
        domains = {domain.pop("id"): domain for domain in status["domains"]}
        endpoints = {}
        for endpoint in status["endpoints"]:
            number = endpoint["domain"]
            endpoints[endpoint["id"]] = {**endpoint, "domain": domains.get(number, number)}
        functions = {}
        for function in self.machine.config.functions:
            seen = control.execute("endpoint", endpoint=function)
            # Linux leaves ATS on from the first page table with a fault queue.
            enabled = sorted({*seen["enabled"]} - {"ats"})
            functions[function] = (seen["connected"], enabled, seen["page-requests"]["outstanding"])
        return {
            "endpoints": endpoints,
            "domains": len(domains),
            "connected": status["connected"],
            "memory": status["memory"],
            "functions": functions,
            "descriptors of the back-end": descriptors(self.backend.process.pid),
            "guest's devices": guest.lines("devices"),
            "guest's groups": sorted(guest.lines("groups")),
        }

    @property
    def is_worn(self) -> bool:
        """Whether the guest's kernel may say nothing of the next faults."""
        return self.backend.control.total()["fault_reports"] > MOST_FAULTS

    def retire(self) -> None:
        """Ends a machine that waits. Raises `AssertionError` if its log has a report that came after the last test."""
        with self.stack:
            self.stack.callback(self._check_late)
            # What the guest still says is read when QEMU has ended.
            self.machine.close()

    def _check_late(self) -> None:
        try:
            self._check(self.machine)
        except AssertionError as error:
            raise AssertionError(f"after {', '.join(self.tests)}: {error}") from error

    def close(self) -> None:
        """Ends a machine that a test has failed on, or left in another state."""
        self.stack.close()


def descriptors(process: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The entries that differ, each as it was and as it is."""
    lines = []
    for name, value in before.items():
        if after[name] != value:
            lines += [f"{name} before: {json.dumps(value)}", f"{name} after:  {json.dumps(after[name])}"]
    return "\n".join(lines)


class Pool:
    """The machines of a class that wait for a test with their options; the last one in the list was used last."""

    def __init__(self, most: int = MOST):
        self._most = most
        self._waiting: list[tuple[str | None, SharedMachine]] = []

    def take(self, options: str) -> SharedMachine | None:
        """A machine with these options, if one waits. If none does, there is room for a new one afterwards."""
        for index, (found, machine) in enumerate(self._waiting):
            if found == options:
                del self._waiting[index]
                return machine
        while len(self._waiting) >= self._most:
            self._waiting.pop(0)[1].retire()
        return None

    def put(self, options: str | None, machine: SharedMachine) -> None:
        """Lets a machine wait that a test has left as it was; without options for its end alone."""
        self._waiting.append((options, machine))

    def close(self) -> None:
        """Ends all, each whatever becomes of the others."""
        with contextlib.ExitStack() as stack:
            for _, machine in self._waiting:
                stack.callback(machine.retire)
            self._waiting = []


def own_machine(test):
    """Marks a test whose machine is no use to others, as it takes away the driver, say."""
    test.own_machine = True
    return test
