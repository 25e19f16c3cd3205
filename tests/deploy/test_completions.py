# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Shells complete the command line, with nothing but the package installed."""

import os
import pty
import select
import time
import unittest

from kit import SystemTest

SECONDS = 60.0


class CompletionTest(SystemTest):
    """Each shell in its own way."""

    def test_bash_completes_options_and_commands(self):
        script = (
            "source /usr/share/bash-completion/completions/vhost-device-iommu && "
            "spec=$(complete -p vhost-device-iommu) && function=${spec#* -F } && function=${function%% *} && "
            "for word in --socket-p comp; do COMP_WORDS=(vhost-device-iommu $word) COMP_CWORD=1; "
            '$function vhost-device-iommu $word vhost-device-iommu; echo "${COMPREPLY[@]}"; done'
        )
        done = self.run_in("bash", "-c", script)
        self.assertEqual((done.returncode, done.stdout), (0, "--socket-path\ncompletions\n"))

    def test_fish_completes_options_and_commands(self):
        for typed, completed in (("--socket-p", "--socket-path"), ("comp", "completions")):
            done = self.run_in("fish", "-c", f"complete -C 'vhost-device-iommu {typed}'")
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertEqual([line.split("\t")[0] for line in done.stdout.splitlines()], [completed])

    def test_zsh_completes_an_option_at_its_prompt(self):
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        self.start("env", "TERM=dumb", "zsh", "-f", "-i", stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, b"autoload -U compinit && compinit -u -D && PS1='ready> '\n")
        self.read_until(ours, b"\rready> ")
        os.write(ours, b"vhost-device-iommu --socket-p\t")
        self.read_until(ours, b"--socket-path")

    def read_until(self, terminal: int, text: bytes) -> None:
        """Reads from a terminal until it has shown a text."""
        shown, deadline = b"", time.monotonic() + SECONDS
        while text not in shown:
            ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
            if not ready:
                self.fail(f"{text!r} was not shown: {shown!r}")
            shown += os.read(terminal, 4096)


if __name__ == "__main__":
    unittest.main()
