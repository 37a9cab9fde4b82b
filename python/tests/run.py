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


def main():
    names = sys.argv[1:]
    loader = unittest.defaultTestLoader
    suite = loader.loadTestsFromNames(names) if names else loader.discover(HERE)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1, buffer=False).run(suite)
    reasons = {}
    for _, reason in result.skipped:
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        print(f"{count} tests skipped: {reason}")
    # (a test of several parts may fail in many of them)
    wrong = [getattr(test, "test_case", test) for test, _ in result.failures + result.errors]
    failed = len({test.id() for test in wrong + result.unexpectedSuccesses})
    passed = result.testsRun - failed - len(result.skipped)
    print(f"Python {platform.python_version()}")
    print(f"python: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
