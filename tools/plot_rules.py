"""The results of measure_rules.sh as a table (table.md) and a picture (rules.svg): plot_rules.py OUT"""

import json
import os
import sys

NAMES = ("states", "rows", "rows-margin-0", "careful", "near", "fast", "rows-64-steps", "fast-64-steps",
         "fast-gen-256", "rows-threshold", "near-threshold", "fast-threshold")
DRAWN = {"states": "states", "careful": "rows, careful", "rows": "rows (the default)", "near": "rows, refresh near",
         "fast": "rows, fast", "fast-64-steps": "fast, 64 steps", "fast-gen-256": "fast, gen-length 256, 64 steps"}


def percent(share):
    return f"{100 * share:.1f} %"


def row(name, result):
    plain, paired = result["against"], result["paired"]
    work = result["token_layers_computed"] / plain["token_layers_computed"]
    low, high = paired["interval"]
    return (f"| {name} | {percent(result['accuracy'])} | {percent(plain['accuracy'])} | {paired['gained']}, "
            f"{paired['lost']} | {100 * low:+.1f} to {100 * high:+.1f} | {result['mean_nfe']:.2f} | {work:.2f} | "
            f"{result['mean_rows']:.0f} of {plain['mean_rows']:.0f} | {paired['seconds_ratio']:.2f} |")


def write_table(results, path):
    head = ("setting", "accuracy", "plain", "gained, lost", "difference, 95 %", "passes", "work in block steps", "rows",
            "time")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += [row(name, result) for name, result in results.items()]
    with open(path, "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")


def note(result):
    paired = result["paired"]
    return (f"accuracy {100 * paired['difference']:+.1f} points, {paired['gained']} gained, {paired['lost']} lost"
            f" of {paired['n']}")


def draw(results, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "rules", "svg.fonttype": "none", "font.size": 10})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.4, 3.4))
    labels = ["plain dual cache"] + list(DRAWN.values())
    times = [1.0] + [results[name]["paired"]["seconds_ratio"] for name in DRAWN]
    notes = [""] + [note(results[name]) for name in DRAWN]
    axes.barh(labels, times, color=["#888888", "#d08a3e"] + ["#3e7cb1"] * (len(DRAWN) - 1))
    for place, (time, text) in enumerate(zip(times, notes)):
        axes.annotate(f"{time:.2f}  {text}", (time, place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.85)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.set_xlabel("time an answer beside the plain dual cache's")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: plot_rules.py OUT, the folder that measure_rules.sh made")
    folder = sys.argv[1]
    results = {}
    for name in NAMES:
        path = os.path.join(folder, name + ".json")
        try:
            with open(path, encoding="utf-8") as file:
                results[name] = json.load(file)
        except (OSError, ValueError) as error:
            sys.exit(f"plot_rules.py: {path}: {error}")
    write_table(results, os.path.join(folder, "table.md"))
    try:
        draw(results, os.path.join(folder, "rules.svg"))
    except ImportError as error:
        sys.exit(f"plot_rules.py: table.md is written, but there is no picture without matplotlib: {error}")


if __name__ == "__main__":
    main()
