# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Lines over a socket, with a time limit on every wait."""

import re
import select
import socket
import threading
import time
from typing import BinaryIO


class LineSocket:
    """Whole lines to and from a stream socket."""

    def __init__(self, sock: socket.socket, name: str):
        self._sock = sock
        self._name = name
        self._pending = b""

    def send(self, line: str, descriptors: tuple[int, ...] = ()) -> None:
        data = line.encode() + b"\n"
        if descriptors:
            data = data[socket.send_fds(self._sock, [data], descriptors) :]
        self._sock.sendall(data)

    def receive(self, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._sock], [], [], left)[0]:
                raise TimeoutError(f"{self._name}: no line within {timeout} s")
            received = self._sock.recv(65536)
            if not received:
                raise EOFError(f"{self._name}: the other side is gone")
            self._pending += received
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")

    def close(self) -> None:
        self._sock.close()


class Console:
    """A guest's console: always read, kept in a file, and waited on."""

    def __init__(self, sock: socket.socket, log: BinaryIO):
        self._sock = sock
        self._log = log
        self._text = ""
        self._seen = 0
        self._start = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while received := self._receive():
            self._log.write(received)
            self._log.flush()
            with self._changed:
                self._text += received.decode(errors="replace").replace("\r", "")
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(65536)
        except OSError:
            return b""

    @property
    def text(self) -> str:
        """All that was written since the last `forget`."""
        with self._changed:
            return self._text[self._start :]

    def forget(self) -> None:
        """Leaves what was found last, and what stands before it, out of `text`."""
        with self._changed:
            self._start = self._seen

    def wait_for(self, pattern: str, timeout: float) -> str:
        """The next line, after the one found last, that matches the regular expression."""
        deadline = time.monotonic() + timeout
        # A whole line only: its newline has come.
        expression = re.compile(f"^.*(?:{pattern}).*\n", re.MULTILINE)
        with self._changed:
            while not (match := expression.search(self._text, self._seen)):
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    why = "it was closed" if self._closed else f"{timeout} s"
                    raise TimeoutError(f"console: no line matches {pattern!r} ({why})")
                self._changed.wait(left)
            self._seen = match.end()
            return match.group().rstrip("\n")

    def close(self) -> None:
        """Call it when QEMU has ended: what it still wrote is read first."""
        self._thread.join(timeout=5)
        self._sock.close()
        self._log.close()
