# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a default run leaves out has its turn, and is never left out when its code has changed."""

import hashlib
import pathlib
import unittest

from kit import functional_classes, nested_classes
from lab_kit import rotation
from lab_kit.classes import TestClass
from lab_kit.rotation import Change
from lab_kit.suites import FUNCTIONAL, NESTED


def commit(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


def unrelated(number: int = 0) -> Change:
    return Change(commit(number), frozenset({"README.md"}), "a test")


class RotationTest(unittest.TestCase):
    """With the classes that there are."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.classes = [*functional_classes(), *nested_classes()]

    def of_kind(self, kind: str) -> set[TestClass]:
        return {cls for cls in self.classes if cls.kind == kind}

    def chosen(self, change: Change) -> set[TestClass]:
        return set(rotation.select(self.classes, change).classes)

    def test_there_are_classes_of_each_kind(self):
        for kind in ("lab", *rotation.ROTATING):
            self.assertGreater(len(self.of_kind(kind)), 4)

    def test_tests_on_the_lab_kernel_do_not_rotate(self):
        self.assertLessEqual(self.of_kind("lab"), self.chosen(unrelated()))

    def test_all_that_rotates_is_spare_and_nothing_else_is(self):
        for change in (unrelated(), Change("", None, "no history")):
            selection = rotation.select(self.classes, change)
            rotating = {cls.name for cls in selection.classes if cls.kind in rotation.ROTATING}
            self.assertEqual(set(selection.turns), rotating)

    def test_what_has_changed_comes_first_and_the_rest_in_another_order_with_each_commit(self):
        orders = set()
        for number in range(5):
            files = frozenset({"src/device/mod.rs", "tests/functional/test_pasids.py"})
            selection = rotation.select(self.classes, Change(commit(number), files, "a test"))
            order = sorted(selection.turns, key=selection.turns.__getitem__)
            own = {cls.name for cls in self.classes if cls.name in selection.turns and "test_pasids" in cls.modules}
            self.assertEqual(set(order[: len(own)]), own)
            orders.add(tuple(order))
        self.assertEqual(len(orders), 5)

    def test_a_choice_is_the_commit_s(self):
        self.assertEqual(self.chosen(unrelated(1)), self.chosen(unrelated(1)))
        choices = {frozenset(self.chosen(unrelated(number))) for number in range(5)}
        self.assertEqual(len(choices), 5)

    def test_about_a_third_of_what_rotates_is_in_a_run(self):
        for kind in rotation.ROTATING:
            fixed = {cls for cls in self.of_kind(kind) if cls.modules & rotation.ALWAYS[kind]}
            rotating = len(self.of_kind(kind)) - len(fixed)
            turn = len((self.chosen(unrelated()) & self.of_kind(kind)) - fixed)
            self.assertEqual(turn, -(-rotating // rotation.SHARE), kind)

    def test_every_class_has_its_turn(self):
        seen = set().union(*(self.chosen(unrelated(number)) for number in range(40)))
        self.assertEqual(seen, set(self.classes))

    def test_page_requests_ends_hot_plug_and_life_cycle_are_always_on_the_debug_kernel(self):
        always = ("PageRequestTest", "PageRequestEndTest", "HotPlugTest", "LifecycleTest", "QmpTest")
        names = {cls.name for cls in self.of_kind("debug")}
        fixed = {cls.name for cls in self.of_kind("debug") if cls.modules & rotation.ALWAYS["debug"]}
        self.assertGreaterEqual(len(fixed), len(always))
        self.assertLess(fixed, names)
        for number in range(20):
            self.assertLessEqual(fixed, {cls.name for cls in self.chosen(unrelated(number))})

    def test_modules_that_are_always_in_a_run_are_there(self):
        for modules in rotation.ALWAYS.values():
            for module in modules:
                self.assertTrue(any((tests / f"{module}.py").exists() for tests in (FUNCTIONAL, NESTED)), module)

    def test_paths_whose_change_runs_everything_are_there(self):
        for paths in rotation.BROAD.values():
            for path in paths:
                where = pathlib.Path(rotation.ROOT / path)
                there = where.exists() or list(where.parent.glob(f"{where.name}*"))
                self.assertTrue(there, path)

    def test_all_run_when_the_driver_or_the_device_has_changed(self):
        for file in ("guest/linux/0001-a.patch", "src/device/mod.rs", "src/transport/backend.rs", "guest/init/pci.c"):
            self.assertEqual(self.chosen(Change(commit(0), frozenset({file}), "a test")), set(self.classes), file)

    def test_all_of_a_kind_run_when_its_kernel_has_changed(self):
        chosen = self.chosen(Change(commit(0), frozenset({"guest/kernel/debug.config"}), "a test"))
        self.assertLessEqual(self.of_kind("debug"), chosen)
        self.assertFalse(self.of_kind("arm") <= chosen)

    def test_classes_run_when_their_tests_have_changed(self):
        change = Change(commit(0), frozenset({"tests/functional/test_pasids.py"}), "a test")
        concerned = {cls for cls in self.classes if "test_pasids" in cls.modules}
        self.assertGreater(len(concerned), 2)
        for number in range(20):
            self.assertLessEqual(concerned, self.chosen(Change(commit(number), change.files, "a test")))

    def test_classes_run_when_what_they_alone_test_has_changed(self):
        for module, paths in rotation.OWN.items():
            concerned = {cls for cls in self.classes if module in cls.modules}
            self.assertTrue(concerned, module)
            for number, path in enumerate(paths):
                where = pathlib.Path(rotation.ROOT / path)
                (file, *_) = where.parent.glob(f"{where.name}*")
                change = Change(commit(number), frozenset({f"{file.relative_to(rotation.ROOT)}/mod.rs"}), "a test")
                self.assertLessEqual(concerned, self.chosen(change), path)

    def test_miri_has_its_turn_and_runs_when_a_pure_module_has_changed(self):
        skipped = [bool(rotation.miri_skips(unrelated(number))) for number in range(40)]
        self.assertEqual(set(skipped), {False, True})
        for number in range(20):
            for file in ("src/device/mod.rs", "src/spec/ids.rs"):
                self.assertEqual(rotation.miri_skips(Change(commit(number), frozenset({file}), "a test")), "")
        self.assertEqual(rotation.miri_skips(Change("", None, "no history")), "")

    def test_all_run_when_it_is_unknown_what_has_changed(self):
        self.assertEqual(self.chosen(Change("", None, "no history")), set(self.classes))

    def test_what_was_chosen_and_why_is_said(self):
        lines = "\n".join(rotation.select(self.classes, unrelated()).lines)
        for cls in self.chosen(unrelated()):
            if cls.kind in rotation.ROTATING:
                self.assertIn(cls.name.partition(".")[2], lines)
        everything = rotation.select(self.classes, Change(commit(0), frozenset({"src/device/mod.rs"}), "a test"))
        self.assertIn("src/device/mod.rs has changed", "\n".join(everything.lines))


if __name__ == "__main__":
    unittest.main()
