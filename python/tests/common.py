"""What the tests share: where things are, the demo model, and the command to compare with."""

import functools
import json
import os
import struct
import subprocess
import unittest

import tokenskip

try:
    import numpy
except ImportError:
    numpy = None

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEMO = os.path.join(ROOT, "examples", "demo-model")
GOLDEN = os.path.join(ROOT, "tests", "golden")
COMMAND = os.environ.get("TOKENSKIP", os.path.join(ROOT, "tokenskip"))
QUESTION = "What is 84 + 23 - 39?"
# One token a pass, so that there are passes to look at.
SLOW = {"threshold": None, "gen_length": 32}

needs_numpy = unittest.skipIf(numpy is None, "this Python has no NumPy (Debian: apt-get install python3-numpy)")


@functools.lru_cache(maxsize=None)
def model(path=DEMO):
    """Loaded once for all tests."""
    return tokenskip.Model.load(path, device="cpu", threads=1)


def golden_model(name):
    return model(os.path.join(GOLDEN, "models", name))


@functools.lru_cache(maxsize=None)
def golden(file):
    with open(os.path.join(GOLDEN, file), encoding="utf-8") as opened:
        return json.load(opened)


def run_command(*arguments):
    done = subprocess.run([COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise AssertionError(f"{arguments}: exit status {done.returncode}: {done.stderr.decode()}")
    return done.stdout


def command_json(path, prompt, options):
    """What `tokenskip generate --json` prints for these keyword options."""
    arguments = ["generate", "-m", path, "--device", "cpu", "--threads", "1", "--json"]
    arguments += ["-p", prompt] if isinstance(prompt, str) else ["--prompt-ids", ",".join(map(str, prompt))]
    return json.loads(run_command(*arguments, *flags(options)))


def flags(options):
    """Keyword options as the command spells them."""
    out = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name == "threshold" and value is None:
            others = ("factor", "frechet", "entropy_bound", "local_leap")
            out += ["--no-threshold"] if all(options.get(other) is None for other in others) else []
        elif isinstance(value, bool):
            out += [flag if value else flag.replace("--", "--no-", 1)]
        elif value is not None:
            out += [flag, str(value)]
    return out


def counted(result):
    """A result's dictionary without what a clock measured."""
    timing = {name: result["timing"][name] for name in ("refreshes", "refreshed_rows", "block_steps")}
    return {**result, "timing": timing}


def read_safetensors(path):
    """{name: (shape, bytes)}, read from the file's bytes alone."""
    with open(path, "rb") as file:
        data = file.read()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    return {name: (tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
            for name, entry in header.items() if name != "__metadata__"}


def rows(array):
    """An array, NumPy's or a memoryview, as nested lists."""
    return array.tolist()
