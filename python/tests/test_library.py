"""Finding the library: what an import needs, and what is said where it is missing or does not fit."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import tokenskip
from common import ROOT

PACKAGE = os.path.join(ROOT, "python", "tokenskip")


def run(code, library=None, path=os.path.join(ROOT, "python")):
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("TOKENSKIP_LIBRARY", None)
    if library is not None:
        environment["TOKENSKIP_LIBRARY"] = library
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode()


ASK = ("import tokenskip\n"
       "try: print(tokenskip.library_version(), tokenskip.library_path())\n"
       "except tokenskip.LibraryError as error: print('LibraryError', isinstance(error, ImportError), error)")


class LibraryTest(unittest.TestCase):
    def test_the_variable_comes_first(self):
        with tempfile.TemporaryDirectory() as folder:
            elsewhere = os.path.join(folder, "elsewhere.so")
            shutil.copy(tokenskip.library_path(), elsewhere)
            rc, text = run(ASK, library=elsewhere)
            self.assertEqual((rc, text.split()[1]), (0, elsewhere))

    def test_the_variable_alone_counts(self):
        rc, text = run(ASK, library="/nowhere/libtokenskip.so")
        self.assertIn("LibraryError True what TOKENSKIP_LIBRARY names cannot be used", text)
        self.assertIn("/nowhere/libtokenskip.so: there is no such file", text)

    def test_beside_the_package(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "tokenskip")
            shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
            shutil.copy(tokenskip.library_path(), os.path.join(copy, "libtokenskip.so"))
            rc, text = run(ASK, path=folder)
            self.assertEqual((rc, text.split()[1]), (0, os.path.join(copy, "libtokenskip.so")))

    def test_nowhere(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "tokenskip")
            shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
            rc, text = run(ASK, path=folder)
            if "LibraryError" not in text:
                self.skipTest("a libtokenskip.so is installed on this system")
            self.assertIn("LibraryError True libtokenskip.so cannot be used", text)
            self.assertIn(os.path.join(copy, "libtokenskip.so") + ": there is no such file", text)
            self.assertIn("make python", text)

    def test_an_import_needs_no_library(self):
        rc, text = run("import tokenskip; print(tokenskip.Model.load.__doc__[:5])", library="/nowhere")
        self.assertEqual(rc, 0, text)

    def test_what_is_no_such_library(self):
        with tempfile.TemporaryDirectory() as folder:
            text_file = os.path.join(folder, "libtokenskip.so")
            with open(text_file, "w", encoding="utf-8") as file:
                file.write("no library")
            self.assertIn(text_file, run(ASK, library=text_file)[1])
            if not shutil.which("cc"):
                self.skipTest("there is no C compiler")
            for code, reason in (("int other(void) { return 0; }", "it has no tsk_version"),
                                 ("int tsk_version(void) { return 100; }", "it has version 0.1.0, and this package"),
                                 (f"int tsk_version(void) {{ return {version()}; }}", "it has no tsk_status_string")):
                source, made = os.path.join(folder, "other.c"), os.path.join(folder, "other.so")
                with open(source, "w", encoding="utf-8") as file:
                    file.write(code)
                subprocess.run(["cc", "-shared", "-fPIC", source, "-o", made], check=True)
                self.assertIn(reason, run(ASK, library=made)[1])


def version():
    major, minor, patch = tokenskip._library.VERSION
    return major * 10000 + minor * 100 + patch
