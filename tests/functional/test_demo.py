# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""qemu-scripts/demo: the first command of a newcomer runs to its end."""

import os
import pathlib
import pty
import re
import select
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator

from bases.testcase import FunctionalTest
from lab_kit.vm import lab

DEMO = pathlib.Path(__file__).resolve().parents[2] / "qemu-scripts" / "demo"
SECONDS = 180


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str]):
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.text = ""

    def _arriving(self) -> Iterator[str]:
        deadline = time.monotonic() + SECONDS
        while select.select([self._ours], [], [], max(0, deadline - time.monotonic()))[0]:
            try:
                yield os.read(self._ours, 65536).decode(errors="replace")
            except OSError:
                # EIO: nobody has the other side any more.
                return

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next place, after the one found last, that matches."""
        while not (found := re.search(pattern, self.text)):
            more = next(self._arriving(), None)
            if not more:
                raise TimeoutError(f"no {pattern!r} on the terminal, which ends with:\n{self.text[-4000:]}")
            self.text += more
        self.text = self.text[found.end() :]
        return found

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


class DemoTest(FunctionalTest):
    """The demo's third and fourth part, and its shell."""

    kernel = staticmethod(lab.patched_kernel)

    def test_third_part_maps_on_demand_and_draws_it(self):
        picture = self.directory / "picture.svg"
        command = [sys.executable, str(DEMO), "--third", "--picture", str(picture)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        # A line for each page of the buffer, and one for the page behind it.
        lines = re.findall(r" ms  00:0[56]\.0 (?:reads |writes) 0x[0-9a-f]+ \[[rw]\]  group \d+ .*", result.stdout)
        self.assertEqual(len([line for line in lines if "DMA done" in line]), 32, result.stdout)
        self.assertEqual(len([line for line in lines if "INVALID_REQUEST" in line and "DMA refused" in line]), 1)
        drawing = xml.etree.ElementTree.parse(picture).getroot()
        bars = [box for box in drawing.iter("{http://www.w3.org/2000/svg}rect") if box.get("height") == "40"]
        # Three parts each: to the guest, in it, back.
        self.assertEqual(len(bars), 3 * len(lines))

    def test_fourth_part_walks_a_list_in_the_memory_of_a_program_and_draws_it(self):
        picture = self.directory / "picture.svg"
        command = [sys.executable, str(DEMO), "--fourth", "--memory-picture", str(picture)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        lines = re.findall(r" 0x[0-9a-f]+: copied .*", result.stdout)
        self.assertEqual(len(lines), 6, result.stdout)
        # Half of the list and of the words were in swap, and nobody had touched the two pages of the result.
        self.assertEqual(sum(line.count("was in swap") for line in lines), 6, result.stdout)
        self.assertEqual(sum(line.count("never touched") for line in lines), 2, result.stdout)
        drawing = xml.etree.ElementTree.parse(picture).getroot()
        pages = [box for box in drawing.iter("{http://www.w3.org/2000/svg}rect") if box.get("height") == "46"]
        self.assertEqual(len(pages), 14)

    def shell(self, *options: str) -> Terminal:
        terminal = Terminal([sys.executable, str(DEMO), "--shell", *options])
        self.addCleanup(terminal.close)
        return terminal

    def end(self, terminal: Terminal) -> None:
        terminal.type("exit")
        terminal.wait_for("the guest has ended")
        self.assertEqual(terminal.process.wait(SECONDS), 0)

    def test_shell_in_a_guest_with_a_kernel_of_one_s_own(self):
        kernel = lab.lab_kernel()
        terminal = self.shell("--kernel", str(kernel.image), "--modules", str(kernel.modules), "--append", "mine=1")
        hint = terminal.wait_for(r"(\S+ ctl \S+ dma-read endpoint=00:05\.0 iova=0x1000 length=16)")
        terminal.wait_for("guest# ")
        terminal.type("ls -d /sys/kernel/iommu_groups/*/devices/*")
        terminal.wait_for(r"devices/0000:00:05\.0\s+\S+devices/0000:00:06\.0")
        terminal.type("cat /proc/cmdline")
        terminal.wait_for(r"console=ttyS0 .* mine=1")
        # What the hint promises: blocked, and the guest's kernel says so on this terminal.
        access = subprocess.run(shlex.split(hint[1]), capture_output=True, text=True, timeout=SECONDS, check=False)
        self.assertNotEqual(access.returncode, 0)
        self.assertIn("TranslationFault", access.stdout + access.stderr)
        terminal.wait_for(r"fault from EP 40 at 0x1000 \[R\]")
        self.end(terminal)

    def test_shell_with_a_kernel_that_does_not_exist_says_so(self):
        terminal = self.shell("--kernel", "/nowhere/bzImage")
        terminal.wait_for("qemu-scripts/demo: /nowhere/bzImage does not exist")
        self.assertEqual(terminal.process.wait(SECONDS), 1)


if __name__ == "__main__":
    FunctionalTest.main()
