#!/usr/bin/env python3
"""Instructions in the inner loop of `tile`, the CPU's matrix product, for each kernel set and number of rows: what one
step of k costs while there is nothing to prefetch. For sets that cannot be timed on this machine.

    gcc -O2 -I. -c tests/library.c -o build/x86.o
    aarch64-linux-gnu-gcc -O2 -I. -c tests/library.c -o build/arm.o
    python3 tests/bench/count_tile.py objdump build/x86.o
    python3 tests/bench/count_tile.py aarch64-linux-gnu-objdump build/arm.o
"""
import re
import subprocess
import sys
from collections import deque

LANES = {"neon": 4, "v256": 8, "v512": 16}
FMA = re.compile(r"vfn?madd\w+ps|fmla")
JUMP = re.compile(r"(j\w+|b|b\.\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?([0-9a-f]+) <")


def functions(objdump, path):
    """name -> list of (address, text)"""
    found, lines = {}, None
    for line in subprocess.run([objdump, "-d", "--no-show-raw-insn", path], check=True, capture_output=True,
                               text=True).stdout.splitlines():
        start = re.match(r"[0-9a-f]+ <(\w+)>:", line)
        if start:
            lines = found.setdefault(start.group(1), [])
        instruction = re.match(r"\s+([0-9a-f]+):\s+(\S.*)", line)
        if instruction and lines is not None:
            lines.append((int(instruction.group(1), 16), instruction.group(2)))
    return found


def loops(lines):
    """The shortest way round each loop: lists of instructions."""
    at = {address: i for i, (address, _) in enumerate(lines)}
    after, heads = [], set()
    for i, (_, text) in enumerate(lines):
        jump = JUMP.match(text)
        target = at.get(int(jump.group(2), 16)) if jump else None
        ends = re.match(r"(ret|jmp|b)\b(?!\.)", text)
        after.append([n for n in ([] if ends else [i + 1], [target])[0] if n < len(lines)] +
                     ([target] if target is not None else []))
        if target is not None and target <= i:
            heads.add(target)
    for head in sorted(heads):
        before, queue = {head: None}, deque([head])
        while queue:
            here = queue.popleft()
            if head in after[here]:
                way = []
                while here is not None:
                    way.append(lines[here][1])
                    here = before[here]
                yield way[::-1]
                break
            for n in after[here]:
                if n not in before:
                    before[n] = here
                    queue.append(n)


def main():
    print("set   rows  instructions  of them fused  in memory  instructions a multiply-add")
    for name, lines in functions(sys.argv[1], sys.argv[2]).items():
        part = re.match(r"tsk__cpu_(\w+)_tile(_rows)?\b", name)
        if not part or part.group(1) not in LANES:
            continue
        lanes, best = LANES[part.group(1)], {}
        for way in loops(lines):
            fma = sum(bool(FMA.match(text)) for text in way)
            if fma and (fma not in best or len(way) < len(best[fma])):
                best[fma] = way
        for fma in sorted(best):
            # (sums for which no register is left)
            kept = sum(bool(re.search(r"\[sp|\(%rsp", text)) for text in best[fma])
            print("%-5s %4d %13d %14d %10d %29.3f" % (part.group(1), fma // 2, len(best[fma]), fma, kept,
                                                      len(best[fma]) / fma / lanes))


main()
