#!/usr/bin/env python3
"""Text as it becomes final, and what every pass committed. A masked-diffusion model does not write from left to right:
within a block any token may come first. `text` is what stands before the first mask; it only grows.

    make python && PYTHONPATH=python python3 examples/python/stream.py examples/demo-model "What is 12 + 30?"

Leaving the loop, or Ctrl-C, ends the generation.
"""

import sys

import tokenskip

path = sys.argv[1] if len(sys.argv) > 1 else "examples/demo-model"
question = sys.argv[2] if len(sys.argv) > 2 else "Who is Newton in physics?"

try:
    with tokenskip.Model.load(path) as model:
        # threshold=None: a fixed number of tokens each pass, here two, so that there is something to watch
        with model.stream(question, gen_length=32, steps=16, threshold=None) as stream:
            for step in stream:
                canvas = step.canvas[step.positions[0] :]
                picture = "".join("░" if token == model.config.mask_token_id else "█" for token in canvas)
                print(f"{step.pass_:2} {picture} {step.n_active:2} ran  {step.text!r}")
        print(stream.result.text)
        print(f"({len(stream.result.tokens)} tokens in {stream.result.nfe} forward passes)")
except tokenskip.TokenSkipError as error:
    sys.exit(f"stream: {error}")
except KeyboardInterrupt:
    sys.exit(130)
