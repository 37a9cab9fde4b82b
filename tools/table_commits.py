"""The results of measure_commits.sh as a table, table.md: table_commits.py OUT"""

import json
import os
import sys

HEAD = ("rule", "accuracy", "gained, lost", "difference, 95 %", "passes", "rows", "time")


def row(name, result):
    plain, paired = result["against"], result["paired"]
    low, high = paired["interval"]
    return (f"| `--{name.replace(', ', ' --')}` | {100 * result['accuracy']:.1f} % | {paired['gained']}, "
            f"{paired['lost']} | {100 * low:+.1f} to {100 * high:+.1f} | {result['mean_nfe']:.2f} | "
            f"{result['mean_rows']:.0f} | "
            f"{result['cpu_seconds_per_answer'] / plain['cpu_seconds_per_answer']:.2f} |")


def plain_row(plain):
    return (f"| `--threshold 0.9` | {100 * plain['accuracy']:.1f} % | | | {plain['mean_nfe']:.2f} | "
            f"{plain['mean_rows']:.0f} | 1.00 ({1e3 * plain['cpu_seconds_per_answer']:.0f} ms) |")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: table_commits.py OUT, the folder that measure_commits.sh made")
    folder, results = sys.argv[1], {}
    for file in sorted(os.listdir(folder)):
        if not file.endswith(".json"):
            continue
        try:
            with open(os.path.join(folder, file), encoding="utf-8") as opened:
                results[file[:-len(".json")]] = json.load(opened)
        except (OSError, ValueError) as error:
            sys.exit(f"table_commits.py: {os.path.join(folder, file)}: {error}")
    if not results:
        sys.exit(f"table_commits.py: {folder} has no results")
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    lines += [plain_row(next(iter(results.values()))["against"])]
    lines += [row(name, result) for name, result in results.items()]
    with open(os.path.join(folder, "table.md"), "w", encoding="utf-8") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
