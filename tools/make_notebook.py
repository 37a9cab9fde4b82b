#!/usr/bin/env python3
"""Runs the cells of examples/notebook/source.py and writes examples/notebook/tokenskip.ipynb, outputs included.

    make notebook           writes it
    make test-notebook      runs it and compares with the committed one (--check): cells and printed text, numbers to
                            0.1 % and 1e-4; of pictures only that they are there, since fonts differ

Needs nbclient, nbformat, ipykernel, NumPy and matplotlib (Debian: python3-nbclient python3-ipykernel
python3-matplotlib), and python/tokenskip/libtokenskip.so (make python).
"""

import argparse
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "examples", "notebook")
NOTEBOOK = os.path.join(FOLDER, "tokenskip.ipynb")
MOST_BYTES = 400_000

try:
    import ipykernel  # noqa: F401
    import matplotlib  # noqa: F401
    import nbformat
    import numpy  # noqa: F401
    from nbclient import NotebookClient
except ImportError as error:
    sys.exit(f"make_notebook: {sys.executable} has no {error.name}. Debian: apt-get install python3-nbclient "
             "python3-ipykernel python3-matplotlib, and PYTHON=/usr/bin/python3")


def cells(text):
    """The cells of a source in the percent format."""
    for part in re.split(r"^# %%", text, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            lines = [re.sub("^# ?", "", line) for line in body.strip().splitlines()]
            yield nbformat.v4.new_markdown_cell("\n".join(lines))
        else:
            yield nbformat.v4.new_code_cell(body.strip())


def joined(outputs):
    """What was printed in several pieces, as it happens to come, is one output."""
    out = []
    for output in outputs:
        if out and output["output_type"] == out[-1]["output_type"] == "stream" and output["name"] == out[-1]["name"]:
            out[-1]["text"] += output["text"]
        else:
            out.append(output)
    return out


def run():
    with open(os.path.join(FOLDER, "source.py"), encoding="utf-8") as file:
        made = nbformat.v4.new_notebook(cells=list(cells(file.read())))
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata["language_info"] = {"name": "python"}
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # (a debugger's remarks on stderr)
    NotebookClient(made, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    for number, cell in enumerate(made.cells):
        if "outputs" in cell:
            cell["outputs"] = joined(cell["outputs"])
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
    made.metadata["language_info"] = {"name": "python"}
    return made


def printed(cell):
    """What a cell printed, and which kinds of other output it has."""
    outputs = cell.get("outputs", [])
    text = "".join(o["text"] for o in outputs if o["output_type"] == "stream")
    return text, [sorted(o["data"]) for o in outputs if "data" in o]


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def same_text(a, b):
    if NUMBER.sub("#", a) != NUMBER.sub("#", b):
        return False
    pairs = zip(map(float, NUMBER.findall(a)), map(float, NUMBER.findall(b)))
    return all(abs(x - y) <= 1e-4 + 1e-3 * max(abs(x), abs(y)) for x, y in pairs)


def differences(found, kept):
    if len(found.cells) != len(kept.cells):
        yield f"{len(kept.cells)} cells are committed, the source has {len(found.cells)}"
    for number, (a, b) in enumerate(zip(found.cells, kept.cells)):
        if a.source != b.source:
            yield f"cell {number} is not as the source has it"
        (a_text, a_kinds), (b_text, b_kinds) = printed(a), printed(b)
        if not same_text(a_text, b_text):
            yield f"cell {number} prints:\n{a_text}committed:\n{b_text}"
        if a_kinds != b_kinds:
            yield f"cell {number} shows {a_kinds}, committed: {b_kinds}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    given = parser.parse_args()
    made = run()
    if not given.check:
        nbformat.write(made, NOTEBOOK)
        size = os.path.getsize(NOTEBOOK)
        print(f"{NOTEBOOK}: {size} bytes")
        return 0 if size < MOST_BYTES else f"more than {MOST_BYTES}"
    wrong = list(differences(made, nbformat.read(NOTEBOOK, as_version=4)))
    if os.path.getsize(NOTEBOOK) >= MOST_BYTES:
        wrong.append(f"it is larger than {MOST_BYTES} bytes")
    for line in wrong:
        print(line)
    print(f"notebook: {len(made.cells) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
