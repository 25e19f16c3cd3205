# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What of the tests on the debug kernel, on Arm and of devices passed through is in a default run, and of those on the lab
kernel that are not always.

Most are tests of the lab kernel again, and most of their time. A run takes a third of each kind: the first when classes are
ordered by a hash of the commit and their name, so commit by commit every class has its turn. It takes a class always if it
is in `ALWAYS`, and if what it tests has changed: `BROAD` and `Change`.

All of these are spare: they come after what is in every run, first those whose own tests have changed and then in the order
of that hash, and what a run has no time for is left out of it, and named. So a change of everything, or a slow machine, makes
no run that has no end.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from .cargo import ROOT
from .classes import TestClass

SHARE = 3

# The kinds of tests that rotate.
ROTATING = ("debug", "arm", "turns", "nested")

# Modules of tests whose classes are in every run on the debug kernel, with all that derives from them: what they exercise in
# the guest's driver (page requests, their ends, functions that come and go, the driver's life) is where races and uses after
# free were found.
ALWAYS = {
    "debug": {
        "test_page_requests", "test_page_request_corners", "test_page_request_ends", "test_pasids", "test_hot_plug",
        "test_qmp", "test_lifecycle", "test_allocations",
    },
    "arm": set(),
    "turns": set(),
    "nested": {"test_edu"},
}

# What all tests of a kind test: if one of these has changed, all of them run.
COMMON = ("guest/linux/", "guest/init/", "src/device/", "src/transport/", "src/spec/", "tests/functional/bases/")
BROAD = {
    "debug": (*COMMON, "guest/kernel/lab", "guest/kernel/debug"),
    "arm": (*COMMON, "guest/kernel/arm64", "qemu-scripts/lab_kit/vm/arm.py"),
    "turns": (*COMMON, "guest/kernel/lab", "src/host/soft/", "src/soft_endpoint/engine/"),
    "nested": (
        *COMMON, "guest/kernel/lab", "src/host/iommufd/", "src/qmp/", "qemu-scripts/run-vm", "tests/nested/passthrough.py",
    ),
}

# What a module of tests tests that the others of its kind do not: its classes run if one of these has changed.
OWN = {"test_arm_nesting": ("src/host/iommufd/", "tests/arm_suite/", "tests/functional/test_arm_nesting.py", "guest/kernel/arm-")}

# What the tests under miri test.
PURE = ("src/device/", "src/spec/", "src/host/mapping")

# A checkout of the branch that others land on is taken for what was landed last: the commits of so many seconds, and at
# least so many.
LANDED_SECONDS = 24 * 3600
LANDED = 10

# The branches that something lands on.
BRANCHES = ("origin/HEAD", "origin/main", "origin/master", "main", "master")


@dataclass(frozen=True)
class Change:
    """The commit, what has changed in it, and since when."""

    commit: str
    # Paths in the tree; None if it cannot be known.
    files: frozenset[str] | None
    since: str


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _base(commit: str) -> tuple[str, str] | None:
    """Where the change began, and how that is known: where this branch left the one it lands on, or some commits ago."""
    if chosen := os.environ.get("LAB_BASE"):
        found = _git("rev-parse", "--verify", "-q", f"{chosen}^{{commit}}")
        return (found, f"LAB_BASE={chosen}") if found else None
    for branch in BRANCHES:
        found = _git("merge-base", commit, branch)
        if found and found != commit:
            return found, f"where it left {branch}"
    # Of the two the one further back; without enough history, none.
    found = _git("rev-parse", "--verify", "-q", f"{commit}~{LANDED}")
    day = _git("rev-list", "-1", f"--before={_seconds(commit) - LANDED_SECONDS}", commit)
    if not found or not day:
        return None
    nearer = _git("merge-base", found, day) == found
    return (found, f"{LANDED} commits ago") if nearer else (day, "a day before the commit")


def _seconds(commit: str) -> int:
    """When a commit was made."""
    return int(_git("show", "-s", "--format=%ct", commit) or 0)


def change() -> Change:
    """What has changed, with what is not committed yet. LAB_BASE names the commit since which."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return Change("", None, "no history")
    base = _base(commit)
    if base is None:
        return Change(commit, None, "the history does not reach back far enough")
    # Both names of a file that was moved.
    changed = _git("diff", "--name-only", "--no-renames", base[0])
    untracked = _git("ls-files", "--others", "--exclude-standard")
    if changed is None or untracked is None:
        return Change(commit, None, "git does not tell")
    return Change(commit, frozenset([*changed.splitlines(), *untracked.splitlines()]), f"{base[0][:12]}, {base[1]}")


@dataclass(frozen=True)
class Selection:
    """What runs, and lines that say what was left out and why the rest was not."""

    classes: list[TestClass]
    lines: list[str]
    # Those of them that a run without time leaves out, by name, and in which order they run.
    turns: dict[str, int]


def select(classes: Iterable[TestClass], change: Change) -> Selection:
    """The classes of a default run."""
    classes = list(classes)
    chosen, lines = [cls for cls in classes if cls.kind not in ROTATING], []
    spare: list[TestClass] = []
    for kind in ROTATING:
        own = [cls for cls in classes if cls.kind == kind]
        if not own:
            continue
        reason = _all_of(kind, change)
        if reason:
            spare += own
            lines.append(f"{kind}: all {len(own)} classes: {reason}")
            continue
        fixed = [cls for cls in own if cls.modules & ALWAYS[kind] or _touched(cls, change)]
        rest = [cls for cls in own if cls not in fixed]
        turn = slice_of(rest, change.commit)
        spare += fixed + turn
        lines.append(f"{kind}: {len(fixed)} of {len(own)} classes always or as their tests have changed: {_names(fixed)}")
        lines.append(f"{kind}: {len(turn)} of the other {len(rest)} classes by turns: {_names(turn)}")
    spare.sort(key=lambda cls: (not _touched(cls, change), _hash(change.commit, cls.name)))
    turns = {cls.name: number for number, cls in enumerate(spare)}
    return Selection(sorted([*chosen, *spare], key=lambda cls: cls.name), lines, turns)


def _names(classes: list[TestClass]) -> str:
    return ", ".join(sorted(cls.name.partition(".")[2] for cls in classes)) or "none"


def _all_of(kind: str, change: Change) -> str:
    """Why all classes of a kind run, if they do."""
    if change.files is None:
        return change.since
    touched = sorted(file for file in change.files if file.startswith(BROAD[kind]) and not file.endswith(".md"))
    return f"{touched[0]} has changed" if touched else ""


def _touched(cls: TestClass, change: Change) -> bool:
    """Whether a module of the class's tests has changed, or what it alone tests. The one that lists the classes of a kernel is
    in all of them."""
    if any(file.startswith(OWN.get(module, ())) for module in cls.modules for file in change.files or ()):
        return True
    own = cls.modules - {cls.name.partition(".")[0]} if cls.kind in ("debug", "arm") else cls.modules
    directory = "nested" if cls.suite == "nested" else "functional"
    return any(f"tests/{directory}/{module}.py" in (change.files or ()) for module in own)


def miri_skips(change: Change) -> str:
    """Why a default run leaves miri out, if it does: no pure module has changed, and it is the turn of others."""
    if change.files is None or any(file.startswith(PURE) for file in change.files):
        return ""
    return "" if int(_hash(change.commit, "miri"), 16) % SHARE == 0 else "no pure module has changed, and it is not its turn"


def _hash(commit: str, name: str) -> str:
    return hashlib.sha256(f"{commit}\0{name}".encode()).hexdigest()


def slice_of(classes: list[TestClass], commit: str) -> list[TestClass]:
    """A third of the classes: those whose turn it is with this commit."""
    return sorted(classes, key=lambda cls: _hash(commit, cls.name))[: -(-len(classes) // SHARE)]
