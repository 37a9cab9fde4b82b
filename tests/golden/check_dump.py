#!/usr/bin/env python3
"""Whether `tokenskip trace --dump` writes what the NumPy reference computes, pass by pass and record by record.

    python3 tests/golden/check_dump.py [--program ./tokenskip] [NAME...]

The generations are those of generate.json and generate_refresh.json (NAME: only these), each with TokenSkip off
(pass0, pass1, ...) and on (skip.pass0, ...). A dump must hold exactly the reference's names, shapes and values, and
tell of each pass the reference's ids and commits, and rows with whose ids and places its values agree. It is read here
from its bytes alone, as the format's description has it, without the library's reader. Needs NumPy (Debian:
python3-numpy).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import reference  # ends here, with a line that says so, where there is no NumPy
from reference import np

TYPES = {"F32": "<f4", "I32": "<i4", "U8": "u1"}
TOLERANCE = 2e-5  # of 1 + the largest magnitude: the reference computes in float64, the library in float32


def read_safetensors(path):
    data = open(path, "rb").read()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:8 + size]), data[8 + size:]
    tensors, end = {}, 0
    metadata = header.pop("__metadata__")
    for name, entry in header.items():  # in the order of their bytes, as the index counts them
        begin, after = entry["data_offsets"]
        assert begin == end, name
        tensors[name] = np.frombuffer(body[begin:after], dtype=TYPES[entry["dtype"]]).reshape(entry["shape"])
        end = after
    assert end == len(body)
    return tensors, metadata


class Watched(reference.Generation):
    """A generation that keeps, of every pass, what the tracer would show of it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.passes = []
        self.before = []  # the canvas before each pass

    def record(self, name, layer, before, after):
        kept = self.passes[-1]
        if name.endswith("_cache"):
            return  # taken when the pass is over, of layers that did not run too
        if "_rope_" in name:
            kept[name.replace("_rope_", "_rope.")] = after.reshape(len(after), -1, self.model.head_dim).copy()
            return
        kept[name + ".output"] = after.copy()
        if name not in ("embedding", "logits"):
            kept[name + ".input"] = before.copy()

    def rows(self, positions):
        states = super().rows(positions)
        self.final = states[-1]
        return states

    def block_step(self, block, t):
        self.final = super().block_step(block, t)
        return self.final

    def skipping_refresh(self, block):
        states, self.final, n_active = super().skipping_refresh(block)
        return states, self.final, n_active

    def output_states(self, block, step):
        self.passes.append({})
        self.before.append(self.canvas.copy())
        output = super().output_states(block, step)
        reference.head(self.model, self.final, self.record)
        for layer in range(self.model.n_layers):
            for part, cache in (("k", self.cache.k), ("v", self.cache.v)):
                heads = cache[layer].reshape(len(self.canvas), -1, self.model.head_dim)
                self.passes[-1][f"kv_{layer}.{part}"] = heads.transpose(1, 0, 2).copy()
        return output


def expected_values(model, golden, changes, prefix):
    options = {**golden["options"], **changes}
    canvas = golden["prompt"] + [model.mask_id] * options["gen_length"]
    generation = Watched(model, canvas, len(golden["prompt"]), options)
    generation.run()
    told = [(prefix + f"pass{n}", ids, committed)
            for n, (ids, committed) in enumerate(zip(generation.before, generation.committed))]
    return {f"{prefix}pass{n}.{name}": value for n, kept in enumerate(generation.passes)
            for name, value in kept.items()}, told


FLAGS = {"refresh_near": "--near", "refresh_window": "--window"}  # the others are named after their option


def arguments(golden):
    """A case's options as the command spells them."""
    options = golden["options"]
    out = ["--prompt-ids", ",".join(map(str, golden["prompt"]))]
    for name, value in options.items():
        flag = FLAGS.get(name, "--" + name.replace("_", "-"))
        if name == "refresh_near" and options["refresh"] == "full":
            continue
        if name == "threshold" and value is None:
            out += ["--no-threshold"] if reference.has_schedule(options) else []
        elif isinstance(value, bool):
            out += [flag if value else flag.replace("--", "--no-", 1)]
        elif value is not None:
            out += [flag, str(value)]
    return out


def predicted_rows(name, found, expected):
    """The dump also has the last states and logits of refresh_rows, which come after the block's and predict nothing."""
    return found[:len(expected)] if ".final_norm." in name or ".logits." in name else found


def visible_rows(name, found, expected):
    """Under a window the dump has the K and V of what the pass sees; the reference keeps all of them."""
    return expected[:, :found.shape[1]] if ".kv_" in name else expected


def told_wrongly(model, found, told, metadata):
    """What the small tensors say, beside the reference's ids and commits and the values themselves."""
    names = list(found)
    index = names.index("index.pass")
    assert names[index:] == ["index.pass", "index.layer"]
    for number, name in enumerate(names[:index]):
        n_pass = int(name.split("pass")[1].split(".")[0])
        part = name.split(".layer_")[-1] if ".layer_" in name else name.split(".kv_")[-1] if ".kv_" in name else "-1"
        layer = int(part.split("_")[0].split(".")[0])
        if (found["index.pass"][number], found["index.layer"][number]) != (n_pass, layer):
            yield f"the index has {name} in pass {found['index.pass'][number]}, layer {found['index.layer'][number]}"
    if (metadata["n_layers"], metadata["first_layer"]) != (str(model.n_layers), "0"):
        yield "the metadata's layers"
    for prefix, ids, committed in told:
        small = {what: found.pop(f"{prefix}.{what}") for what in ("ids", "positions", "ran", "committed")}
        rows, ran = small["positions"], small["ran"] == 1
        if small["ids"].tolist() != ids.tolist() or small["committed"].tolist() != committed:
            yield f"{prefix}: ids or commits"
        expected = model.weight["wte.weight"][small["ids"][rows]]
        if ran.shape != (model.n_layers, len(rows)) or \
                np.max(np.abs(found[prefix + ".embedding.output"] - expected)) > 1e-6:
            yield f"{prefix}: the rows are not those of the embedding"
        for layer in range(model.n_layers):
            name, cache = f"{prefix}.layer_{layer}_rope.k", found[f"{prefix}.kv_{layer}.k"]
            keys = found[name] if name in found else np.zeros((0, *cache.transpose(1, 0, 2).shape[1:]))
            if not np.array_equal(cache.transpose(1, 0, 2)[rows[ran[layer]]], keys):
                yield f"{prefix}: the rows that ran layer {layer} are not those whose keys are cached"
    del found["index.pass"], found["index.layer"]


def differences(found, expected):
    for name in sorted(set(found) ^ set(expected)):
        yield name + (" is not in the reference" if name in found else " is not in the dump")
    for name in sorted(set(found) & set(expected)):
        b = visible_rows(name, found[name], expected[name])
        a = predicted_rows(name, found[name], b)
        known = np.isfinite(b)  # a position that a refresh skipped has no last states
        if a.shape != b.shape:
            yield f"{name} has shape {a.shape}, not {b.shape}"
        elif known.any() and not np.max(np.abs(a - b)[known]) <= TOLERANCE * (1 + np.max(np.abs(b[known]))):
            yield f"{name} is off by {np.max(np.abs(a - b)[known]):.3g}"


PLAIN = {"skip_rule": "off", "skip_layer_k": 0, "skip_refresh": False, "refresh": "full", "refresh_window": 0}


def leaves_out(options):
    """Whether the dump has a second generation, because the options compute less than the plain cache."""
    by_states = options["skip_layer_k"] > 0 and options.get("skip_rule", "states") != "off"
    by_rows = options.get("skip_rule") == "rows"
    return by_states or by_rows or options.get("refresh") == "near" or options.get("refresh_window", 0) > 0


def check(program, model, golden):
    folder = os.path.join(reference.HERE, "models", golden["model"])
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "dump.safetensors")
        command = [program, "trace", "-m", folder, "--dump", path, *arguments(golden)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found, metadata = read_safetensors(path)
    expected, told = expected_values(model, golden, PLAIN, "")
    if leaves_out(golden["options"]):
        more, more_told = expected_values(model, golden, {}, "skip.")
        expected.update(more)
        told += more_told
    wrong = list(told_wrongly(model, found, told, metadata))
    return len(expected), wrong + list(differences(found, expected))


def can_run(golden):
    """The command has no way to fix tokens of the generated part, and a generation without a pass nothing to dump."""
    rest = golden.get("canvas", [])[len(golden["prompt"]):]
    return len(set(rest)) <= 1 and golden["expected"]["nfe"] > 0


GOLDENS = ("generate.json", "generate_refresh.json", "generate_rows.json", "generate_rule_rows.json",
           "generate_near.json", "generate_transfer.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", default="./tokenskip")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    models = {name: reference.Model(spec, reference.make_tensors(spec)) for name, spec in reference.MODELS.items()}
    goldens = [json.load(open(os.path.join(reference.HERE, file))) for file in GOLDENS]
    cases = [c for g in goldens for c in g["cases"] if can_run(c) and (not given.names or c["name"] in given.names)]
    failures, values = 0, 0
    for case in cases:
        n, wrong = check(given.program, models[case["model"]], case)
        values += n
        failures += bool(wrong)
        for line in wrong[:3]:
            print(f"{case['name']}: {line}")
    print(f"{len(cases)} generations, {values} tensors, {failures} generations differ")
    return 1 if failures or len(cases) < max(1, len(given.names)) else 0


if __name__ == "__main__":
    sys.exit(main())
