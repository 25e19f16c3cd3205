# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The program under test, as a process."""

import os
import pathlib
import select
import subprocess

from .control import Control
from .tied import tied

START_TIMEOUT = 60.0


def _is_listening(path: pathlib.Path) -> bool:
    """Whether somebody listens on a socket file, without connecting to it."""
    for line in pathlib.Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        # Flags, fourth: __SO_ACCEPTCON is 0x10000.
        if len(fields) > 7 and fields[7] == str(path) and int(fields[3], 16) & 0x10000:
            return True
    return False


class Backend:
    """A running back-end with its vhost-user socket and its control socket."""

    def __init__(
        self,
        program: pathlib.Path,
        directory: pathlib.Path,
        endpoints: list[str],
        options: list[str],
        inherited: tuple[int, ...] = (),
    ):
        self.socket = directory / "vhost.sock"
        self.log = directory / "backend.log"
        control = directory / "control.sock"
        command = [str(program), "--socket-path", str(self.socket), "--control", str(control)]
        for endpoint in endpoints:
            command += ["--endpoint", endpoint]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                tied([*command, *options]), stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=inherited
            )
        try:
            self._wait_listening([self.socket, control])
            self.control = Control(control)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _wait_listening(self, paths: list[pathlib.Path]) -> None:
        """There is no event for "listens": look every 10 ms, but notice the end of the process at once."""
        ended = os.pidfd_open(self.process.pid)
        try:
            for _ in range(int(START_TIMEOUT / 0.01)):
                if all(map(_is_listening, paths)):
                    return
                if select.select([ended], [], [], 0.01)[0]:
                    break
        finally:
            os.close(ended)
        raise RuntimeError(f"the back-end does not listen: {self.log.read_text(errors='replace').strip()}")

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=START_TIMEOUT)

    def close(self) -> None:
        if hasattr(self, "control"):
            self.control.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def write_viot(program: pathlib.Path, path: pathlib.Path, iommu: str, endpoints: list[str]) -> None:
    """Has the program under test write the ACPI table that names its endpoints: functions, or whole buses (`01`)."""
    command = [str(program), "viot", "--iommu", iommu]
    for endpoint in endpoints:
        command += ["--endpoint" if ":" in endpoint else "--bus", endpoint]
    subprocess.run([*command, "-o", str(path)], check=True, stdin=subprocess.DEVNULL)
