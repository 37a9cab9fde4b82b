"""The programs of examples/python run, and say what a refused model is."""

import os
import subprocess
import sys
import unittest

from common import DEMO, ROOT, model


def run(name, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "python"), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, os.path.join(ROOT, "examples", "python", name), *arguments],
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class ExampleTest(unittest.TestCase):
    def test_hello(self):
        self.assertEqual(run("hello.py", DEMO, "What is 12 + 30?"), (0, "12+30=42. The answer is 42\n", ""))

    def test_stream(self):
        result = model().generate("What is 12 + 30?", gen_length=32, steps=16, threshold=None)
        rc, out, err = run("stream.py", DEMO, "What is 12 + 30?")
        self.assertEqual((rc, err), (0, ""))
        lines = out.splitlines()
        self.assertEqual(lines[-2], result.text)
        self.assertEqual(lines[-1], f"({len(result.tokens)} tokens in {result.nfe} forward passes)")
        self.assertEqual(len(lines), result.nfe + 2)

    def test_a_model_that_is_not_there(self):
        for name in ("hello.py", "stream.py"):
            rc, out, err = run(name, "/nowhere")
            self.assertEqual((rc, out), (1, ""))
            self.assertIn("/nowhere", err)
            self.assertEqual(len(err.splitlines()), 1)
