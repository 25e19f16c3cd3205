# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""`ctl PATH top` on a terminal."""

import os
import pathlib
import pty
import select
import subprocess
import tempfile
import termios
import time
import unittest

import kit  # noqa: F401
from lab_kit.vm import lab

SECONDS = 60.0
# The terminal's other screen, which programs that fill it use: entered, left.
ENTERED, LEFT = b"\x1b[?1049h", b"\x1b[?1049l"


class TopTest(unittest.TestCase):
    """The program with an endpoint, and a terminal."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="lab-")
        self.addCleanup(scratch.cleanup)
        self.control = pathlib.Path(scratch.name) / "control"
        self.program = str(lab.backend())
        front_end = pathlib.Path(scratch.name) / "front-end"
        command = [self.program, "--socket-path", front_end, "--control", self.control, "--endpoint", "00:05.0"]
        self.daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.addCleanup(self.daemon.wait)
        self.addCleanup(self.daemon.kill)
        deadline = time.monotonic() + SECONDS
        while not self.control.exists() and time.monotonic() < deadline:
            select.select([], [], [], 0.02)
        self.terminal, theirs = pty.openpty()
        self.addCleanup(os.close, self.terminal)
        termios.tcsetwinsize(theirs, (30, 130))
        environment = {**os.environ, "TERM": "xterm"}
        streams = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.PIPE}
        self.top = subprocess.Popen([self.program, "ctl", self.control, "top"], env=environment, **streams)
        self.addCleanup(self.top.wait)
        self.addCleanup(self.top.kill)
        self.addCleanup(self.top.stderr.close)
        os.close(theirs)

    def read_until(self, text: bytes) -> bytes:
        """Reads from the terminal until it has shown a text."""
        shown, deadline = b"", time.monotonic() + SECONDS
        while text not in shown:
            ready, _, _ = select.select([self.terminal], [], [], deadline - time.monotonic())
            if not ready:
                self.fail(f"{text!r} was not shown: {shown!r}")
            shown += os.read(self.terminal, 4096)
        return shown

    def test_it_fills_the_terminal_and_gives_it_back(self):
        self.assertIn(ENTERED, self.read_until(b"0000:00:05.0"))
        os.write(self.terminal, b"q")
        self.read_until(LEFT)
        self.assertEqual(self.top.wait(SECONDS), 0)

    def test_it_gives_the_terminal_back_when_the_program_ends(self):
        self.read_until(b"0000:00:05.0")
        self.daemon.terminate()
        self.read_until(LEFT)
        self.assertEqual(self.top.wait(SECONDS), 1)
        self.assertIn(b"the control socket", self.top.stderr.read())


if __name__ == "__main__":
    unittest.main()
