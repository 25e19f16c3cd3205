# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The second part: the lab kernel as a host with real iommufd. A page request travels to the guest side and back."""

import io

from lab_kit import boot, cargo, kernel

from .common import Failed, say

# A test of the host suite that tells its steps.
STORY = "guest::demo::a_page_request_travels_to_the_guest_and_back"
STEP = "step "


class Story(io.StringIO):
    """Shows the steps of the story that runs in the lab kernel, and keeps everything else for the case of failure."""

    def write(self, text: str) -> int:
        if text.startswith(STEP):
            print(" " * 11 + text.removeprefix(STEP), end="", flush=True)
        return super().write(text)


def run() -> None:
    say(
        "the lab kernel (compiled once, some minutes) as a host with real iommufd: a page request to the guest and back"
    )
    image = kernel.ensure_kernel().image
    program, backend = cargo.test_binary("host_suite"), cargo.test_backend()
    say(f"booting {image}; times of the steps are from the start of the back-end in it")
    story = Story()
    result = boot.run(boot.Host(timeout=120, environment={"LAB_TEST_BACKEND": str(backend)}), [str(program), "--exact", STORY, "--nocapture"], story)
    trouble = result.trouble()
    if result.status or STEP not in story.getvalue() or trouble:
        raise Failed("\n".join([f"the story ended with status {result.status}:", story.getvalue(), *trouble]))
    say("done: the guest decided, the kernel's I/O page table followed, and the device went on")
