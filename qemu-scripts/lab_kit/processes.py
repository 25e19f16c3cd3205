# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Child processes with deadlines. Each has a session of its own and is ended together with all that it has started."""

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

# How long a process that is late may take to say where it stands.
LAST_WORDS_SECONDS = 3.0
# How long the output of a process that has ended is waited for: a process that it has left behind may hold it open.
REST_SECONDS = 2.0

STOPPED = "the run was ended"

# Processor seconds of what has ended: of all, and of what each thread has run.
_all_used = 0.0
_used = threading.local()

_live: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()
_stopped = threading.Event()


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status; if it was late, why it was ended and what it said when that was near."""

    status: int
    late: str = ""
    last_words: list[str] = field(default_factory=list)


class Late(Exception):
    """A process said nothing, or went on, for too long."""


def run(
    command: list[str],
    line: Callable[[str], None],
    deadline: float,
    silence: float = float("inf"),
    **options: Any,
) -> Ended:
    """Runs a command and passes on each line of its output (without its end), standard error included.

    A command that takes more than `deadline` seconds, or says nothing for `silence` seconds, is ended. It gets SIGUSR1
    first: a test worker then says where it stands.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        **options,
    )  # fmt: skip
    with _lock:
        _live.add(process)
    late, last_words = "", []
    try:
        try:
            for text in _lines(process, started + deadline, deadline, silence):
                line(text)
        except Late as why:
            late = str(why)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)
            with contextlib.suppress(Late):
                # No result is among them: the signal may have woken up what was waited for in vain.
                last_words += _lines(process, time.monotonic() + LAST_WORDS_SECONDS, LAST_WORDS_SECONDS)
    finally:
        _end(process)
        with _lock:
            _live.discard(process)
    if _stopped.is_set():
        late = late or STOPPED
    return Ended(process.returncode, late, last_words)


def _lines(
    process: subprocess.Popen[bytes], until: float, deadline: float, silence: float = float("inf")
) -> Iterator[str]:
    """The lines of a process's output until it has ended; raises `Late`."""
    assert process.stdout
    output, rest, spoke, ended = process.stdout.fileno(), b"", time.monotonic(), None
    while True:
        now = time.monotonic()
        if now > until:
            raise Late(f"it took more than {deadline:.0f} s")
        if now - spoke > silence:
            raise Late(f"it said nothing for {silence:.0f} s")
        if ended is None and _ended(process):
            ended = now
        if select.select([output], [], [], 0.2)[0]:
            chunk = os.read(output, 1 << 16)
            if not chunk:
                break
            spoke = time.monotonic()
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (text.decode(errors="replace").rstrip("\r") for text in whole)
        elif ended is not None and now - ended > REST_SECONDS:
            break
    if rest:
        yield rest.decode(errors="replace").rstrip("\r")
    while not _ended(process):
        if time.monotonic() > until:
            raise Late(f"it took more than {deadline:.0f} s")
        time.sleep(0.05)


def _ended(process: subprocess.Popen[bytes], options: int = os.WNOHANG) -> bool:
    """Whether a process has ended; then notes its exit status, and what it and its children have used."""
    global _all_used
    if process.returncode is None:
        pid, status, usage = os.wait4(process.pid, options)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = usage.ru_utime + usage.ru_stime
            _used.seconds = used() + seconds
            with _lock:
                _all_used += seconds
    return process.returncode is not None


def used() -> float:
    """Processor seconds of all that this thread has run."""
    return getattr(_used, "seconds", 0.0)


def all_used() -> float:
    """Processor seconds of all that was run."""
    return _all_used


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    _ended(process, 0)
    if process.stdout:
        process.stdout.close()


def end_all() -> None:
    """Ends what runs, for good: `run` says of each that the run was ended."""
    _stopped.set()
    with _lock:
        for process in _live:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def stopped() -> bool:
    """Whether `end_all` was called."""
    return _stopped.is_set()
