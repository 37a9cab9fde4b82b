"""Intermediate tensors of every pass, copied out as arrays."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

from . import _arrays, _layout


@dataclass(frozen=True)
class Stats:
    """Of a record's output: mean, unbiased standard deviation, extremes, mean magnitude."""

    mean: float
    std: float
    min: float
    max: float
    abs_mean: float


@dataclass(frozen=True, repr=False, eq=False)
class Record:
    """One tensor of one pass.

    Attributes:
        name: embedding; layer_{i}, layer_{i}_attn_norm, _q_proj, _k_proj, _v_proj, _rope (parts q and k), _attn_out,
            _ff_norm, _ff_proj, _up_proj, _ffn_out; kv_{i} (parts k and v, as cached after the pass); final_norm,
            logits.
        part: "", or "q", "k", "v" where a name has two outputs.
        pass_: number of the pass in the generation, from 0.
        layer: its number, -1 outside the blocks.
        positions: int32 [n_rows]: the positions in the canvas that ran here, in the order of the rows. Of caches: all
            that are cached.
        ids: int32 [n_rows]: the tokens at these positions that the pass ran on.
        input_shape: (n_rows, width), or () where the record has no single input.
        output_shape: (n_rows, width); rope (n_rows, n_heads, head_dim); caches (n_kv_heads, length, head_dim).
        stats: of the output.
        input, output: float32 of these shapes; None unless the trace has values=True.
    """

    name: str
    part: str
    pass_: int
    layer: int
    positions: Any
    ids: Any
    input_shape: Tuple[int, ...]
    output_shape: Tuple[int, ...]
    stats: Stats
    input: Any
    output: Any

    @property
    def n_rows(self) -> int:
        """Rows that ran here."""
        return len(self.positions)

    @property
    def key(self) -> str:
        """The name that `tokenskip trace --dump` gives the output: "pass1.layer_0_rope.q"."""
        return f"pass{self.pass_}.{self.name}.{self.part or 'output'}"

    def __repr__(self) -> str:
        return f"<Record {self.key} {list(self.output_shape)}>"


class Trace:
    """The records of a session's passes, in their order; from session.trace(). Ends with close() or the `with`.

    len(), iteration and indices go over the records; get() and find() by name.
    """

    def __init__(self, end: Callable[["Trace"], None]):
        """Not to be called: use session.trace()."""
        self.records: List[Record] = []
        self._end: Optional[Callable[["Trace"], None]] = end

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def find(self, pattern: str = "*", pass_: Optional[int] = None, part: Optional[str] = None) -> List[Record]:
        """All records whose name fits the pattern (* and ? as in a shell), of this pass and part, or of any."""
        return [r for r in self.records if fnmatch.fnmatchcase(r.name, pattern) and pass_ in (None, r.pass_)
                and part in (None, r.part)]

    def get(self, name: str, pass_: Optional[int] = None, part: Optional[str] = None) -> Optional[Record]:
        """The last record of this name, pass and part; None where nothing of that name ran (every row skipped)."""
        found = self.find(name, pass_, part)
        return found[-1] if found else None

    @property
    def passes(self) -> List[int]:
        """Numbers of the passes that have records, in order."""
        return sorted({r.pass_ for r in self.records})

    def who_ran(self, pass_: Optional[int] = None, canvas_length: Optional[int] = None) -> Any:
        """Which positions ran in which layer of a pass (None: the last): bool [n_layers, canvas_length].

        It looks at the records layer_{i}; the trace must have them.
        """
        pass_ = self.passes[-1] if pass_ is None and self.records else pass_
        blocks = [r for r in self.records if r.pass_ == pass_ and r.name == f"layer_{r.layer}"]
        caches = [r for r in self.records if r.pass_ == pass_ and r.name.startswith("kv_")]
        if not blocks:
            raise ValueError(f"the trace has no layer_* records of pass {pass_}")
        n_layers = 1 + max(r.layer for r in blocks + caches)
        length = canvas_length or 1 + max(max(r.positions, default=0) for r in blocks + caches)
        out, _ = _arrays.empty("?", (n_layers, int(length)))
        for record in blocks:
            for position in record.positions:
                out[record.layer, int(position)] = True
        return out

    def clear(self) -> None:
        """Forgets the records so far."""
        self.records.clear()

    def close(self) -> None:
        """No further pass is traced. The records stay."""
        end, self._end = self._end, None
        if end is not None:
            end(self)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()


def record_of(r: _layout.tsk_trace_record, canvas: Sequence[int]) -> Record:
    """Copies a record. `canvas`: the ids that the pass runs on."""
    n = r.n_rows
    shape = tuple(int(d) for d in r.output_shape[: r.n_dims])
    input_shape = tuple(int(d) for d in r.input_shape[:2]) if r.input_shape[1] else ()
    positions = _arrays.copied("i", r.positions, (n,))
    ids, _ = _arrays.empty("i", (n,))
    for row in range(n):
        ids[row] = canvas[positions[row]]
    stats = Stats(r.stats.mean, r.stats.std, r.stats.min, r.stats.max, r.stats.abs_mean)
    return Record(
        r.name.decode(), r.part.decode(), getattr(r, "pass"), r.layer, positions, ids, input_shape, shape, stats,
        _arrays.copied("f", r.input, input_shape) if r.input and input_shape else None,
        _arrays.copied("f", r.output, shape) if r.output else None,
    )
