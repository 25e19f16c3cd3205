# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a package has in it."""

import os
import pathlib
import subprocess
import tempfile
import unittest

from kit import ROOT, installed

DOCUMENTATION = "usr/share/doc/vhost-device-iommu"
WANTED = {
    "usr/bin/vhost-device-iommu": 0o755,
    "usr/share/man/man1/vhost-device-iommu.1": 0o644,
    "usr/share/bash-completion/completions/vhost-device-iommu": 0o644,
    "usr/share/zsh/vendor-completions/_vhost-device-iommu": 0o644,
    "usr/share/fish/vendor_completions.d/vhost-device-iommu.fish": 0o644,
    "usr/lib/systemd/system/vhost-device-iommu@.service": 0o644,
    "usr/lib/systemd/system/vhost-device-iommu@.socket": 0o644,
    f"{DOCUMENTATION}/README.md": 0o644,
    f"{DOCUMENTATION}/docs/passthrough.md": 0o644,
    f"{DOCUMENTATION}/examples/devices.conf": 0o644,
}


class FilesTest(unittest.TestCase):
    """The list in Cargo.toml, against the tree."""

    def test_everything_that_a_user_wants_is_in_the_list(self):
        modes = {name: mode for name, (_, mode) in installed().items()}
        self.assertEqual({name: modes.get(name) for name in WANTED}, WANTED)

    def test_all_of_share_is_in_the_list(self):
        sources = {source for source, _ in installed().values()}
        ours = {str(path.relative_to(ROOT)) for path in (ROOT / "share").rglob("*") if path.is_file()}
        self.assertEqual(ours - sources, set())


# In a run of everything.
if os.environ.get("LAB_EXHAUSTIVE"):

    class PackageTest(unittest.TestCase):
        """The package, built."""

        def test_the_package_has_the_files_of_the_list(self):
            scratch = tempfile.TemporaryDirectory(prefix="lab-")
            self.addCleanup(scratch.cleanup)
            package = pathlib.Path(scratch.name) / "package.deb"
            root = pathlib.Path(scratch.name) / "root"
            # The program that the lab has built.
            command = [os.environ["LAB_CARGO_DEB"], "deb", "--no-build", "--no-strip", "--output", str(package)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
            found = {
                str(path.relative_to(root)).removesuffix(".gz"): path.stat().st_mode & 0o777
                for path in root.rglob("*")
                if path.is_file()
            }
            # Made by cargo-deb.
            del found[f"{DOCUMENTATION}/copyright"]
            self.assertEqual(found, {name: mode for name, (_, mode) in installed().items()})
            version = subprocess.run(
                [root / "usr/bin/vhost-device-iommu", "--version"], capture_output=True, text=True, check=True
            )
            self.assertIn("vhost-device-iommu ", version.stdout)


if __name__ == "__main__":
    unittest.main()
