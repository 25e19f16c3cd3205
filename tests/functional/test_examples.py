# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU starts with the command lines that `--help`, the man page and README print. Only `/run/` is another directory."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import unittest

from lab_kit.vm import lab

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 60.0


def commands(text: str) -> list[str]:
    """The commands of a text, each with all its lines."""
    found: list[str] = []
    going_on = False
    for line in text.splitlines():
        if going_on:
            found[-1] += f"\n{line}"
        elif line.lstrip().startswith(("vhost-device-iommu ", "qemu-system-x86_64 ")):
            found.append(line.lstrip())
        else:
            continue
        going_on = line.endswith("\\")
    return found


class ExamplesTest(unittest.TestCase):
    """Three commands give a guest an IOMMU: one starts the back-end, one makes the table, one starts QEMU."""

    def setUp(self) -> None:
        try:
            self.qemu, self.backend = lab.qemu(), lab.backend()
        except lab.Missing as missing:
            self.skipTest(str(missing))
        scratch = tempfile.TemporaryDirectory(prefix="lab-")
        self.addCleanup(scratch.cleanup)
        self.directory = pathlib.Path(scratch.name)
        programs = self.directory / "bin"
        programs.mkdir()
        (programs / "vhost-device-iommu").symlink_to(self.backend)
        wrapper = programs / "qemu-system-x86_64"
        # Stopped before the first instruction: there is nothing to boot.
        wrapper.write_text(
            f'#!/bin/sh\nexec {" ".join(self.qemu)} "$@" -S -display none -qmp unix:{self.directory}/qmp,server=on\n'
        )
        wrapper.chmod(0o755)
        self.variables = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}

    def start(self, command: str) -> subprocess.Popen:
        """Pastes a command into a shell, which it replaces."""
        text = command.removesuffix(" &").replace("/run/", f"{self.directory}/")
        process = subprocess.Popen(
            ["sh", "-c", f"exec {text}"], cwd=self.directory, env=self.variables, stderr=subprocess.PIPE, text=True
        )
        self.addCleanup(self._end, process)
        return process

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        if process.poll() is None:
            process.kill()
        process.communicate()

    def paste(self, text: str) -> None:
        found = commands(text)
        serving = next(command for command in found if "--socket-path" in command)
        viot = next(command for command in found if command.startswith("vhost-device-iommu viot"))
        qemu = next(command for command in found if command.startswith("qemu-system-x86_64"))
        backend = self.start(serving)
        for line in backend.stderr:
            if "listening" in line:
                break
        self.assertEqual(self.start(viot).wait(TIMEOUT), 0)
        machine = self.start(qemu)
        self.assertTrue(self.status(machine))
        machine.send_signal(signal.SIGTERM)
        self.assertEqual(machine.wait(TIMEOUT), 0)
        backend.send_signal(signal.SIGTERM)
        self.assertEqual(backend.wait(TIMEOUT), 0)

    def status(self, machine: subprocess.Popen) -> bool:
        """What QEMU says of itself, when it has made all its devices. It waits for us before it makes them."""
        path = self.directory / "qmp"
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(TIMEOUT)
            while not path.exists():
                self.assertIsNone(machine.poll(), "QEMU has ended")
                os.sched_yield()
            monitor.connect(str(path))
            lines = monitor.makefile("rw")
            lines.readline()
            for command in ("qmp_capabilities", "query-status"):
                lines.write(json.dumps({"execute": command}) + "\n")
                lines.flush()
                answer = json.loads(lines.readline() or '{"ended": true}')
                if "return" not in answer:
                    self.fail(f"{answer} {machine.communicate()[1]}")
        return answer["return"]["status"] == "prelaunch"

    def test_qemu_starts_with_the_examples_of_the_help(self):
        text = subprocess.run([self.backend, "--help"], capture_output=True, text=True, check=True).stdout
        self.paste(text.split("Examples:\n")[1])

    def test_qemu_starts_with_the_commands_of_the_readme(self):
        _, block = (ROOT / "README.md").read_text().split("## Use it\n\n```sh\n")
        self.paste(block.split("\n```")[0])

    def test_qemu_starts_with_the_examples_of_the_man_page(self):
        if not shutil.which("man"):
            self.skipTest("man is not installed")
        page = subprocess.run(
            ["man", "-l", ROOT / "docs/vhost-device-iommu.1"],
            env={**os.environ, "MANWIDTH": "120", "MAN_KEEP_FORMATTING": "", "TERM": "dumb", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self.paste(page.split("EXAMPLES\n")[1])


if __name__ == "__main__":
    unittest.main()
