#!/usr/bin/env python3
"""The shortest useful program: load a model, ask it something, print the answer.

    make python && PYTHONPATH=python python3 examples/python/hello.py examples/demo-model "What is 12 + 30?"
"""

import sys

import tokenskip

path = sys.argv[1] if len(sys.argv) > 1 else "examples/demo-model"
question = sys.argv[2] if len(sys.argv) > 2 else "Who is Newton in physics?"

try:
    with tokenskip.Model.load(path) as model:
        print(model.generate(question).text)
except tokenskip.TokenSkipError as error:
    sys.exit(f"hello: {error}")
