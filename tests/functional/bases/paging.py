# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The base of the tests that take page requests in the guest, through VFIO and iommufd with a fault queue."""

import threading
from collections.abc import Callable
from typing import Any

from lab_kit.vm import lab
from lab_kit.vm.control import Control, ControlError
from lab_kit.vm.guest import SECONDS, Guest, fields
from lab_kit.vm.machine import ENDPOINTS, Machine

from .testcase import FunctionalTest

FIRST, SECOND = ENDPOINTS
IOVA = 0x100_0000
PAGE = 0x1000


class Call(threading.Thread):
    """Something that blocks until the guest has answered: its result, or its error."""

    def __init__(self, run: Callable[[], Any]):
        super().__init__(daemon=True)
        self._run = run
        self._result: Any = None
        self._error: ControlError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._run()
        except ControlError as error:
            self._error = error

    def waits(self, seconds: float) -> bool:
        """Whether it still blocks after so long."""
        self.join(seconds)
        return self.is_alive()

    def result(self) -> Any:
        self.join(60)
        if self.is_alive():
            raise TimeoutError("the back-end has not answered")
        if self._error:
            raise self._error
        return self._result


class PagingTest(FunctionalTest):
    """A guest with the driver of guest/linux/."""

    kernel = staticmethod(lab.patched_kernel)

    def connect(self) -> Control:
        """A control connection of its own, for what blocks."""
        control = Control(self.directory / "control.sock", timeout=60)
        self.addCleanup(control.close)
        return control

    def attach_table(self, guest: Guest, name: str, function: str) -> None:
        """Opens a function, and attaches it to a page table with a fault queue on an address space of its own."""
        guest.open_vfio(name, function)
        guest.run(f"ioas {name}")
        guest.run(f"table {name} {name} {name}")
        guest.run(f"attach-table {name} {name}")

    def start_attached(self, *options: str, **more: Any) -> tuple[Machine, Guest, Control]:
        """The first endpoint is attached to the page table `one`; `more` is for `start`."""
        machine, guest, control = self.start("--page-response-timeout", "0", *options, **more)
        self.attach_table(guest, "one", FIRST)
        return machine, guest, control

    def faults(self, guest: Guest, table: str) -> list[dict[str, str]]:
        return [fields(line) for line in guest.lines(f"faults {table} {SECONDS}")]

    def assert_answered(self, control: Control, groups: int) -> None:
        """Asserts that the guest answered each group once, and nothing failed."""
        counters = control.counters()
        self.assertEqual(counters["page_request_groups"], groups)
        self.assertEqual(counters["page_response"], groups)
        self.assertEqual(counters["page_response_stale"], 0)
        self.assertEqual(counters["page_request_unwanted"], 0)
        self.assert_clean(control)
