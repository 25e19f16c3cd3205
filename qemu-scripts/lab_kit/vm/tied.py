# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Processes that end with the one that started them: when a test runner is killed, no QEMU and no back-end is left."""

import shutil

_SETPRIV = shutil.which("setpriv")


def tied(command: list[str]) -> list[str]:
    """The command in such a process. It is util-linux that knows how; without it the process is on its own."""
    return [_SETPRIV, "--pdeathsig", "KILL", "--", *command] if _SETPRIV else command
