#!/usr/bin/env python3
"""Make a model worse: a copy of a model folder with Gaussian noise in its matrices.

    python3 tools/make_noisy_model.py examples/demo-model build/noisy --noise 0.4 --embedding-noise 0.2 --seed 0

A small model that was trained well is sure of its answers, and no setting changes many of them. One with noise is
not: it takes fewer questions to see which of two settings does more harm (`tokenskip eval --against`).

Every matrix (tensor of two dimensions) gets noise of --noise times its own standard deviation, the embedding, which a
tied head shares, of --embedding-noise times its own. Norms and other vectors stay. A tensor's noise depends on the
seed and its name only, not on the shard that it is in. OUT has the same shards, configuration and tokenizer as IN.

Needs NumPy. Tensors are read and written one by one.
"""
import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
import zlib

import numpy as np

EMBEDDING = "model.transformer.wte.weight"
HEAD = "model.transformer.ff_out.weight"
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
COPIED = ("*.json", "*.jinja", "*.txt")
MAX_HEADER = 100 << 20
CHUNK = 1 << 22  # numbers at a time


class Refused(Exception):
    """What is wrong with the input, in one line."""


# ---------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------

def to_float(stored, dtype):
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def from_float(values, dtype):
    """Rounded to the nearest number of that type, ties to even."""
    if dtype != "BF16":
        return values.astype(STORED[dtype])
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(STORED[dtype])


def chunks(stored):
    return (slice(start, start + CHUNK) for start in range(0, len(stored), CHUNK))


def deviation(stored, dtype):
    total = squares = 0.0
    for part in chunks(stored):
        values = to_float(stored[part], dtype).astype(np.float64)
        total += values.sum()
        squares += np.square(values).sum()
    mean = total / len(stored)
    return float(np.sqrt(max(squares / len(stored) - mean * mean, 0.0)))


def add_noise(stored, dtype, scale, generator):
    """In place; each chunk's draws follow those of the one before."""
    for part in chunks(stored):
        values = to_float(stored[part], dtype)
        values += np.float32(scale) * generator.standard_normal(len(values), dtype=np.float32)
        stored[part] = from_float(values, dtype)
        if not np.isfinite(to_float(stored[part], dtype)).all():
            raise Refused(f"the noise goes beyond what {dtype} holds")


# ---------------------------------------------------------------------------------------------------------------
# safetensors: 8 bytes with the header's length, the header in JSON, the tensors' bytes
# ---------------------------------------------------------------------------------------------------------------

def read_header(file, size):
    """The header as it stands, with its length, and its tensors in the order of their bytes."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(size - 8, MAX_HEADER):
        raise Refused("no safetensors file: its header is longer than the file")
    text = file.read(length)
    try:
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        entries = [(*map(int, t["data_offsets"][:2]), name, str(t["dtype"]), list(map(int, t["shape"])))
                   for name, t in tensors.items()]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Refused("no safetensors file: its header is not what the format has") from None
    if not all(len(entry) == 5 for entry in entries):
        raise Refused("no safetensors file: a tensor without its place")
    entries.sort()
    end = 0
    for begin, after, name, _, _ in entries:
        if begin != end or after < begin:
            raise Refused(f"tensor {name} does not begin where the one before it ends")
        end = after
    if end != size - 8 - length:
        raise Refused(f"its tensors take {end} bytes, and {size - 8 - length} are there")
    return head + text, entries


def noisy_bytes(data, name, dtype, shape, options, is_tied):
    """The tensor's bytes, with noise if it is a matrix."""
    if len(shape) != 2 or not data:
        return data
    if dtype not in STORED:
        raise Refused(f"matrix {name} is of type {dtype}, which is none of {', '.join(STORED)}")
    if len(data) != shape[0] * shape[1] * STORED[dtype].itemsize:
        raise Refused(f"matrix {name} has {len(data)} bytes, which its shape does not give")
    source = EMBEDDING if is_tied and name == HEAD else name  # a copy of the embedding stays one
    stored = np.frombuffer(data, STORED[dtype]).copy()
    spread = deviation(stored, dtype)
    if not np.isfinite(spread):
        raise Refused(f"matrix {name} holds infinities or NaN")
    scale = spread * (options.embedding_noise if source == EMBEDDING else options.noise)
    if scale > 0:
        add_noise(stored, dtype, scale, np.random.default_rng([options.seed, zlib.crc32(source.encode())]))
    return stored.tobytes()


def write_shard(source, target, options, is_tied):
    try:
        with open(source, "rb") as file, open(target, "wb") as out:
            header, entries = read_header(file, os.path.getsize(source))
            out.write(header)
            for begin, end, name, dtype, shape in entries:
                out.write(noisy_bytes(file.read(end - begin), name, dtype, shape, options, is_tied))
    except Refused as refusal:
        raise Refused(f"{source}: {refusal}") from None


# ---------------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------------

def read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Refused(f"{path}: no JSON object")
    return content


def shard_names(folder):
    """One file, or those that the index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    if not index.exists():
        raise Refused(f"{folder}: neither model.safetensors nor {index.name} in it")
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise Refused(f"{index}: no \"weight_map\"")
    names = sorted({str(name) for name in weights.values()})
    for name in names:
        if name != os.path.basename(name) or not (folder / name).is_file():
            raise Refused(f"{index}: no file '{name}' beside it")
    return names


def write_folder(source, target, options):
    is_tied = read_json(source / "config.json").get("weight_tying", True) is not False
    for name in shard_names(source):
        write_shard(source / name, target / name, options, is_tied)
    for pattern in COPIED:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


def make(options):
    """All of OUT, or nothing of it."""
    source, target = pathlib.Path(options.source), pathlib.Path(options.target)
    if not source.is_dir():
        raise Refused(f"{source}: no such folder")
    if os.path.lexists(target):
        raise Refused(f"{target}: is there already")
    unfinished = pathlib.Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    try:
        write_folder(source, unfinished, options)
        unfinished.chmod(source.stat().st_mode & 0o777)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


def amount(text):
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def whole(text):
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="the model's folder")
    parser.add_argument("target", metavar="OUT", help="a folder that is not there yet")
    parser.add_argument("--noise", type=amount, default=0.4, metavar="X", help="of a matrix's deviation (0.4)")
    parser.add_argument("--embedding-noise", type=amount, default=0.2, metavar="X", help="of the embedding's (0.2)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the draws (0)")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")  # one line, without the usage
    return parser.parse_args()


def main():
    options = parse_arguments()
    try:
        with np.errstate(all="ignore"):  # what comes of infinities is looked for
            make(options)
    except Refused as refusal:
        sys.exit(f"make_noisy_model.py: {refusal}")
    except OSError as error:
        sys.exit(f"make_noisy_model.py: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
