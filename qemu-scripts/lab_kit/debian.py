# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Packages of a newer Debian suite, downloaded with a private apt state and unpacked into the cache.

Nothing is installed: no maintainer script runs, no chroot and no root are needed. The archive's address is the one in
the machine's own apt configuration.
"""

import contextlib
import os
import pathlib
import shlex
import shutil
import subprocess
import time
from typing import Any

from . import cache
from .cache import Missing, say

# What the lab's own machine is: where nothing else is said, packages are for it.
MACHINE = "amd64"

STABLE = "trixie"
BACKPORTS = "trixie-backports"
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Read after the machine's configuration, whose proxies and mirrors stay in force.
CONFIGURATION = """\
Dir::State "{base}/state";
Dir::State::status "{base}/status";
Dir::Cache "{base}/cache";
Dir::Cache::archives "{archives}";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "{base}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
Acquire::Languages "none";
Acquire::Retries "3";
#clear Acquire::IndexTargets::deb::DEP-11;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"""

# The longest that one command may take: a download, a build of a patched kernel.
SECONDS = 3600

# Package lists younger than this are used as they are.
FRESH_SECONDS = 3600


def run(command: list[str], what: str, **options: Any) -> str:
    """Runs a command: its output. A failure is one line with the command's last words."""
    options = {"env": {**os.environ, "LC_ALL": "C"}, "timeout": SECONDS, **options}
    result: subprocess.CompletedProcess[str]
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options)
    except subprocess.TimeoutExpired as late:
        raise Missing(f"{what}: {shlex.join(command[:2])} took more than {late.timeout:.0f} s") from late
    if result.returncode != 0:
        words = [line for line in result.stderr.splitlines() + result.stdout.splitlines() if line.strip()]
        errors = [line for line in words if line.startswith("E:")] or words[-1:] or ["no message"]
        raise Missing(f"{what}: {errors[0].strip()} ({shlex.join(command[:2])}, status {result.returncode})")
    return result.stdout


def mirror() -> str:
    """The address of the machine's Debian archive."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise Missing(f"{tool} not found: the lab takes QEMU and kernels from Debian packages")
    lines = pathlib.Path("/etc/os-release").read_text().splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line)
    name, codename = (release.get(word, "").strip('"') for word in ("ID", "VERSION_CODENAME"))
    if name != "debian":
        raise Missing(f"this is {name or 'an unknown system'}: the lab takes QEMU and kernels from Debian's archive")
    if not KEYRING.exists():
        raise Missing(f"{KEYRING} not found: install debian-archive-keyring")
    targets = run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        "apt configuration",
    )
    for line in targets.splitlines():
        words = line.split()
        if words[:2] == [codename, "main"]:
            return words[2]
    raise Missing(f"apt's configuration names no archive for {codename}, component main")


class Apt:
    """An apt with a state of its own for each architecture."""

    def __init__(self, archives: pathlib.Path, architecture: str = MACHINE):
        self._base = cache.directory() / ("apt" if architecture == MACHINE else f"apt-{architecture}")
        for sub in ("state/lists/partial", "cache"):
            (self._base / sub).mkdir(parents=True, exist_ok=True)
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        (self._base / "status").touch()
        address = mirror()
        (self._base / "sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {address} {suite} main\n" for suite in (STABLE, BACKPORTS))
        )
        # Two processes share the lists, each with an archive directory of its own.
        self._configuration = archives / "apt.conf"
        self._configuration.write_text(
            CONFIGURATION.format(base=self._base, archives=archives, architecture=architecture)
        )
        self._archives = archives

    def _apt(self, tool: str, *arguments: str) -> str:
        return run([tool, "-c", str(self._configuration), *arguments], "Debian archive", cwd=self._archives)

    def update(self) -> None:
        stamp = self._base / "updated"
        if stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < FRESH_SECONDS:
            return
        say(f"reading the package lists of {STABLE} and {BACKPORTS}")
        # Without this an update that reached nothing is a success with warnings.
        self._apt("apt-get", "-o", "APT::Update::Error-Mode=any", "update")
        stamp.touch()

    def version(self, package: str, suite: str) -> str:
        """The newest version of a package in a suite."""
        for line in self._apt("apt-cache", "madison", package).splitlines():
            fields = [field.strip() for field in line.split("|")]
            if len(fields) == 3 and f" {suite}/" in f" {fields[2]} ":
                return fields[1]
        raise Missing(f"Debian archive: {package} is not in {suite}")

    def dependency(self, package: str, suite: str, prefix: str) -> str:
        """The package starting with `prefix` that `package` depends on: what a meta-package stands for."""
        shown = self._apt("apt-cache", "show", f"{package}={self.version(package, suite)}")
        for line in shown.splitlines():
            if line.startswith("Depends:"):
                for word in line.removeprefix("Depends:").replace(",", " ").split():
                    if word.startswith(prefix):
                        return word
        raise Missing(f"Debian archive: {package} of {suite} depends on no {prefix}*")

    def download(self, packages: list[str], suite: str, dependencies: bool) -> list[pathlib.Path]:
        """Downloads packages of a suite, with all they need if `dependencies`."""
        if dependencies:
            self._apt("apt-get", "-y", "-t", suite, "--download-only", "install", *packages)
        else:
            self._apt("apt-get", "download", *(f"{name}={self.version(name, suite)}" for name in packages))
        return sorted(self._archives.glob("*.deb"))


def unpack(packages: list[pathlib.Path], root: pathlib.Path) -> None:
    """Unpacks packages into a directory. base-files goes first: it has the links from /lib to /usr/lib."""
    root.mkdir(exist_ok=True)
    for package in sorted(packages, key=lambda path: not path.name.startswith("base-files_")):
        run(["dpkg-deb", "-x", str(package), str(root)], package.name)
    names = "".join(f"{package.name}\n" for package in packages)
    (root.parent / "packages.txt").write_text(names)


def fetch(
    path: pathlib.Path,
    packages: list[str],
    suite: str,
    what: str,
    dependencies: bool = False,
    architecture: str = MACHINE,
) -> None:
    """Fills `path`/root with packages, beside what is there, and drops the downloads."""
    archives = path / "archives"
    with cache.lock("apt"):
        apt = Apt(archives, architecture)
        apt.update()
        say(f"{what}: downloading")
        files = apt.download(packages, suite, dependencies)
    size = sum(file.stat().st_size for file in files)
    say(f"{what}: unpacking {len(files)} package{'s' * (len(files) != 1)}, {size / 1e6:.0f} MB")
    unpack(files, path / "root")
    shutil.rmtree(archives)


def version(package: str, suite: str, architecture: str = MACHINE) -> str:
    """The newest version of a package in a suite."""
    with cache.lock("apt"):
        apt = Apt(cache.directory() / "apt" / "archives", architecture)
        apt.update()
        return apt.version(package, suite)


def meta(package: str, suite: str, prefix: str) -> str:
    """The package behind a meta-package."""
    with cache.lock("apt"):
        apt = Apt(cache.directory() / "apt" / "archives")
        apt.update()
        return apt.dependency(package, suite, prefix)


def first(packages: list[str], suite: str) -> str:
    """The first of these packages that a suite has."""
    with cache.lock("apt"):
        apt = Apt(cache.directory() / "apt" / "archives")
        apt.update()
        for package in packages:
            with contextlib.suppress(Missing):
                apt.version(package, suite)
                return package
    raise Missing(f"Debian archive: {suite} has none of {', '.join(packages)}")


def need_tools(tools: dict[str, str]) -> None:
    """Makes sure that commands or files are there; as root on a Debian machine installs the packages that have them."""

    def there(tool: str) -> bool:
        return pathlib.Path(tool).exists() if tool.startswith("/") else shutil.which(tool) is not None

    def lacking() -> list[str]:
        return sorted({package for tool, package in tools.items() if not there(tool)})

    if not (packages := lacking()):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Missing(f"build tools are missing: apt-get install {' '.join(packages)}")
    # apt waits for another apt's lock on what is installed, and not for that on the lists.
    with cache.lock("build-tools"):
        if packages := lacking():
            _install(packages)


def _install(packages: list[str]) -> None:
    say(f"installing {' '.join(packages)}")
    install = ["apt-get", "-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", "install", *packages]
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(install, "build tools", env=environment)
    except Missing:
        # Lists that are old or were never read.
        run(["apt-get", "-o", "DPkg::Lock::Timeout=300", "update"], "build tools", env=environment)
        run(install, "build tools", env=environment)
