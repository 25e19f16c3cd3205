# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The base of the functional tests."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
import time
import unittest
from collections.abc import Callable
from typing import Any

from lab_kit import trouble
from lab_kit.vm import lab
from lab_kit.vm.backend import Backend, write_viot
from lab_kit.vm.control import Control, ControlError
from lab_kit.vm.guest import TIMEOUT, Guest
from lab_kit.vm.machine import ENDPOINTS, IOMMU, Machine, MachineConfig

from .sharing import Pool, SharedMachine

# An endpoint of the back-end that the guest does not know: always unattached.
UNKNOWN_TO_GUEST = "00:1e.0"


class FunctionalTest(unittest.TestCase):
    """Starts back-ends and machines, and ends them with the test."""

    # The kernel that the guests of a class boot, on how many processors, and with what on its command line.
    kernel = staticmethod(lab.lab_kernel)
    processors = 1
    command_line = ""
    # What a guest's log may have for all that, being no fault of ours.
    known_trouble = re.compile(r"(?!)")
    # What they run on.
    machine_type = Machine
    # The back-end that they start.
    backend = staticmethod(lab.backend)
    # What the guest's driver is loaded with.
    driver_parameters = ""
    # Whether a test takes over the machine of the one before, where both want the same (see `sharing`).
    shares_machines = False
    # Whether a default run has the class only when it is its turn (`lab_kit.rotation`).
    by_turns = False
    # Whether the tests wait for lines of the guest's kernel on faults, of which it prints so many only.
    waits_for_faults = True

    _pool: Pool

    @staticmethod
    def main() -> None:
        """Runs the tests of one file: `python3 tests/functional/test_dma.py`."""
        unittest.main()

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls._pool = Pool()
        cls.addClassCleanup(cls._pool.close)

    def setUp(self) -> None:
        try:
            self.machine_type.qemu(), self.backend(), self.machine_type.init(), self.kernel()
        except lab.Missing as missing:
            self.skipTest(str(missing))
        self._machines = 0

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Each test has a directory of its own, or that of a shared machine. When the test fails, the logs in it are shown
        with the reason."""
        own = self.directory = self._new_directory()
        (own / "tests.txt").write_text(f"{self.id()}\n")
        self._shared: SharedMachine | None = None
        self._options = ""
        self._making: contextlib.ExitStack | None = None
        self._is_as_before = False
        result = self.defaultTestResult() if result is None else result
        self._before = [(troubles, len(troubles)) for troubles in (result.failures, result.errors)]
        try:
            super().run(result)
            for troubles, count in self._before:
                if len(troubles) > count:
                    test, reason = troubles[-1]
                    troubles[-1] = (test, f"{reason}\n{self._history()}{self._logs()}")
        finally:
            self._leave()
            if self._shared or not self._keep():
                shutil.rmtree(own)
        return result

    @staticmethod
    def _keep() -> str | None:
        return os.environ.get("LAB_KEEP")

    def _new_directory(self) -> pathlib.Path:
        if keep := self._keep():
            pathlib.Path(keep).mkdir(parents=True, exist_ok=True)
        return pathlib.Path(tempfile.mkdtemp(prefix="lab-test-", dir=keep))

    def _history(self) -> str:
        """What a shared machine has done before."""
        if not self._shared or len(self._shared.tests) < 2:
            return ""
        return f"--- the same machine ran before: {', '.join(self._shared.tests[:-1])}\n"

    def shared(self, options: object, make: Callable[[], tuple[Backend, Machine]]) -> tuple[Backend, Machine]:
        """What `make` starts, or what it started for an earlier test of the class with the same options."""
        test = getattr(self, self._testMethodName)
        if not self.shares_machines or getattr(test, "own_machine", False):
            return make()
        self.assertIsNone(self._shared, "a test has one machine that is shared")
        self._options = repr(options)
        self._shared = self._pool.take(self._options)
        if not self._shared:
            self._shared = SharedMachine(self._new_directory(), bool(self._keep()), self._check)
            self.directory = self._shared.directory
            self._making = self._shared.stack
            self._shared.started(*make())
            self._making = None
        self.directory = self._shared.directory
        # Cleanups that the test adds from here on come before this one.
        self.addCleanup(self._end_shared)
        self._shared.begin(self._testMethodName)
        return self._shared.backend, self._shared.machine

    def _end_shared(self) -> None:
        """The last of a test: the machine is as it was, and its log has no reports. A test that has failed says no more."""
        assert self._shared
        if not self._has_failed():
            self._shared.end(self.restore)
            self._is_as_before = True
        self._shared.check_log()

    def _has_failed(self) -> bool:
        """Whether this test has failed so far. Before Python 3.11 the result hears of that only when the test has ended."""
        waiting = getattr(self._outcome, "errors", [])
        return any(len(troubles) > count for troubles, count in self._before) or any(reason for _, reason in waiting)

    def _leave(self) -> None:
        """A machine is for the next test if this one has passed, and left it as it was."""
        if not self._shared:
            return
        if self._is_as_before and not self._has_failed():
            self._pool.put(None if self.waits_for_faults and self._shared.is_worn else self._options, self._shared)
        else:
            self._shared.close()

    def restore(self, machine: Machine) -> None:
        """What the tests of a class leave in the guest beside what is in their process, in order to be taken away."""

    def _logs(self) -> str:
        """The ends of all logs."""
        lines = []
        for log in sorted(self.directory.rglob("*.log")):
            lines += [f"--- end of {log.relative_to(self.directory)}"]
            lines += log.read_text(errors="replace").splitlines()[-40:]
        return "\n".join(lines) + "\n"

    def _check(self, machine: Machine) -> None:
        """What must never be in a guest's log."""
        found = trouble.lines(self.known_trouble.sub("", machine.kernel_log))
        self.assertFalse(found, "\n".join(["the guest's log:", *found]))

    def assert_clean(self, control: Control) -> None:
        """Asserts that nothing failed silently: a Linux guest does not look at the status of MAP and UNMAP."""
        counters = control.counters()
        names = ("map_failed", "unmap_failed", "requests_unwritten", "host_errors", "event_buffers_bad")
        self.assertEqual({name: counters[name] for name in names}, dict.fromkeys(names, 0))

    def wait_until(self, what: str, condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
        """Asks again until it is so: for what the back-end announces to nobody."""
        deadline = time.monotonic() + timeout
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"not within {timeout} s: {what}")

    def _at_end(self, close: Callable[[], None]) -> None:
        """Ends a process with the test, or with the shared machine that is being made."""
        if self._making:
            self._making.callback(close)
        else:
            self.addCleanup(close)

    def start_backend(
        self,
        *options: str,
        endpoints: tuple[str, ...] = (*ENDPOINTS, UNKNOWN_TO_GUEST),
        inherited: tuple[int, ...] = (),
    ) -> Backend:
        backend = Backend(self.backend(), self.directory, list(endpoints), list(options), inherited)
        self._at_end(backend.close)
        return backend

    def start_machine(
        self,
        backend: Backend | None,
        command_line: str = "",
        endpoints: tuple[str, ...] = ENDPOINTS,
        functions: dict[str, pathlib.Path] | None = None,
        programs: tuple[pathlib.Path, ...] = (),
        extra: tuple[str, ...] = (),
        **more: Any,
    ) -> Machine:
        """A machine with `endpoints` behind `backend`, or behind QEMU's own virtio-iommu; waits for its init.

        `functions` are endpoints too, software functions: where they are, and their vfio-user sockets. `programs` are
        files for the guest, `extra` more options for QEMU; `more` goes to the machine's configuration.
        """
        viot = None
        if backend and self.machine_type.takes_viot:
            viot = self.directory / "viot.bin"
            write_viot(lab.backend(), viot, IOMMU, [*endpoints, *(functions or {})])
        self._machines += 1
        directory = self.directory / f"machine{self._machines}"
        directory.mkdir()
        config = MachineConfig(
            kernel=self.kernel(),
            vhost_socket=backend.socket if backend else None,
            viot=viot,
            command_line=f"{self.command_line} {command_line}",
            processors=self.processors,
            functions=functions or {},
            programs=list(programs),
            extra=list(extra),
            **more,
        )
        machine = self.machine_type(config, directory)
        self._at_end(machine.close)
        if not self._making:
            self.addCleanup(self._check, machine)
        machine.wait_ready()
        return machine

    def start(
        self, *options: str, command_line: str = "", endpoints: tuple[str, ...] = ENDPOINTS, **more: Any
    ) -> tuple[Machine, Guest, Control]:
        """A back-end with `options`, a machine behind it (see `start_machine`), and the driver loaded."""

        def make() -> tuple[Backend, Machine]:
            backend = self.start_backend(*options, endpoints=(*endpoints, UNKNOWN_TO_GUEST))
            machine = self.start_machine(backend, command_line, endpoints, **more)
            machine.guest.load("virtio_iommu", self.driver_parameters)
            return backend, machine

        backend, machine = self.shared((options, command_line, endpoints, more), make)
        return machine, machine.guest, backend.control

    def assert_refused(self, error_class: str, access, *arguments) -> None:
        """Asserts that an access from outside fails with that class of error."""
        with self.assertRaises(ControlError) as caught:
            access(*arguments)
        self.assertEqual(caught.exception.error_class, error_class)

    def attach_vfio(self, guest: Guest, name: str, function: str, space: str) -> None:
        """Opens a function through VFIO and attaches it to a new address space."""
        guest.open_vfio(name, function)
        guest.run(f"ioas {space}")
        guest.run(f"attach {name} {space}")
