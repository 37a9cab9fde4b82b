#!/usr/bin/env python3
"""Runs all tests of the Python module with the standard library alone. The last line is "python: N passed, N failed".

    make test-python                                    # with the library and the command made before
    PYTHONPATH=python python3 python/tests/run.py test_stream       # one file
"""

import os
import platform
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.dirname(HERE))


class Result(unittest.TextTestResult):
    """It counts what passed. (Whether testsRun has the skipped ones differs between versions of Python.)"""

    passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1


def main():
    names = sys.argv[1:]
    loader = unittest.defaultTestLoader
    suite = loader.loadTestsFromNames(names) if names else loader.discover(HERE)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1, resultclass=Result).run(suite)
    reasons = {}
    for _, reason in result.skipped:
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        print(f"{count} tests skipped: {reason}")
    # (a test of several parts may fail in many of them)
    wrong = [getattr(test, "test_case", test) for test, _ in result.failures + result.errors]
    failed = len({test.id() for test in wrong + result.unexpectedSuccesses})
    print(f"Python {platform.python_version()}")
    print(f"python: {result.passed} passed, {failed} failed")
    return 1 if failed or not result.passed else 0


if __name__ == "__main__":
    sys.exit(main())
