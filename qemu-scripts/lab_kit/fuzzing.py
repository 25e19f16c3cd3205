# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The fuzz targets of fuzz/, built with what cargo-fuzz sets, so that a plain cargo is enough."""

import re
from collections.abc import Callable

from . import cargo, processes
from .cargo import ROOT
from .lanes import Job
from .parts import BUILDS, UNIT
from .tally import Tally

TARGETS = ("ring", "function", "tables")
# In a default run, and in a run of everything.
SECONDS, LONG_SECONDS = 30, 120
# A target that does not come to its end is ended after so much more.
MORE_SECONDS = 120

# Coverage counters, comparisons, the address sanitizer.
FLAGS = (
    "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 "
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table "
    "-Cllvm-args=-sanitizer-coverage-trace-compares -Clink-dead-code -Cforce-frame-pointers -Cdebug-assertions "
    "-Coverflow-checks -Ccodegen-units=1 -Zsanitizer=address"
)
HOST = "x86_64-unknown-linux-gnu"
FUZZ = ROOT / "fuzz"


def jobs(tally: Tally, everything: bool) -> list[Job]:
    """One build, and a job a target: lanes run them at once."""

    def build() -> None:
        said: list[str] = []
        arguments = ["build", "--release", "--bins", "--manifest-path", str(FUZZ / "Cargo.toml")]
        where = ["--target", HOST, "--target-dir", str(FUZZ / "target")]
        try:
            # The flags are unstable ones; RUSTC_BOOTSTRAP lets every toolchain take them.
            cargo.run([*arguments, *where], said.append, RUSTC_BOOTSTRAP="1", RUSTFLAGS=FLAGS)
        except cargo.BuildFailed as failure:
            raise cargo.BuildFailed(str(failure), said) from failure

    built = Job("build of the fuzz targets", build, BUILDS, 70, holds="fuzz/target", makes=True)
    seconds = LONG_SECONDS if everything else SECONDS
    return [Job(f"unit::fuzz::{name}", _run(tally, name, seconds), UNIT, 150, needs=(built,)) for name in TARGETS]


def _run(tally: Tally, name: str, seconds: int) -> Callable[[], None]:
    def run() -> None:
        program = FUZZ / "target" / HOST / "release" / name
        corpus, artifacts, seeds = FUZZ / "corpus" / name, FUZZ / "artifacts" / name, FUZZ / "seeds" / name
        for directory in (corpus, artifacts):
            directory.mkdir(parents=True, exist_ok=True)
        command = [
            str(program), f"-max_total_time={seconds}", "-timeout=10", "-print_final_stats=1",
            f"-artifact_prefix={artifacts}/", str(corpus), str(seeds),
        ]  # fmt: skip
        said: list[str] = []
        ended = processes.run(command, said.append, seconds + MORE_SECONDS, cwd=FUZZ)
        counts = [int(found[1]) for line in said if (found := re.match(r"stat::number_of_executed_units:\s*(\d+)", line))]
        runs = counts[-1] if counts else 0
        good = ended.status == 0 and not ended.late and runs > 0
        detail = f"{runs} inputs in {seconds} s" if good else ended.late or f"see {artifacts}"
        tally.test(f"unit::fuzz::{name}", good, detail, said[-60:])

    return run
