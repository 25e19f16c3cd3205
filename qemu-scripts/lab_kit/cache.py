# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The cache: entries named after what went into them, made once, by one process at a time."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator


class Missing(Exception):
    """The machine lacks something that the lab needs. The message is one line and says what to do."""


class OutOfReach(Missing):
    """The machine lacks something that not every good machine can have: where it is for spare jobs alone, they are left
    out."""


def say(text: str) -> None:
    """A progress line. Standard output is for answers."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def directory() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(base) / "vhost-device-iommu"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}; set XDG_CACHE_HOME to a directory that can be written") from error
    return path


def key(*parts: str) -> str:
    """A short name for the content of `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Holds the lock `name`; says so when another process has it."""
    with (directory() / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: waiting for another process that makes it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


_closed = False


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Within it `entry` finds what is there, and makes nothing."""
    global _closed
    before, _closed = _closed, True
    try:
        yield
    finally:
        _closed = before


def is_closed() -> bool:
    """Whether nothing may be fetched or made."""
    return _closed


def complete(name: str) -> bool:
    """Whether the entry `name` is there."""
    return (directory() / name / ".complete").exists()


def entry(name: str, make: Callable[[pathlib.Path], None], resume: bool = False) -> pathlib.Path:
    """The directory of the entry `name`, filled by `make` if it is not complete.

    An incomplete one (power went, network went) is made anew, unless `resume` says that `make` goes on with it. Raises
    `Missing` where the cache is `closed` and the entry is not complete.
    """
    path = directory() / name
    if complete(name):
        return path
    if _closed:
        raise Missing(f"{path} is not there")
    with lock(name):
        if complete(name):
            return path
        if path.exists() and not resume:
            shutil.rmtree(path)
        path.mkdir(exist_ok=True)
        started = time.monotonic()
        make(path)
        (path / ".complete").touch()
        say(f"{name}: ready after {time.monotonic() - started:.0f} s")
    return path
