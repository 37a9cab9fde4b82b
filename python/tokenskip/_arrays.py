"""Arrays of numbers: NumPy's where NumPy is there, else memoryviews of the same shape."""

from __future__ import annotations

import array
import ctypes
from typing import Any, Iterable, List, Sequence, Tuple

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

_NUMPY_TYPES = {"f": "float32", "i": "int32", "B": "uint8", "?": "bool"}


def empty(code: str, shape: Sequence[int]) -> Tuple[Any, int]:
    """An array of this shape, and the address of its first number. code: f float32, i int32, B uint8, ? bool."""
    count = 1
    for n in shape:
        count *= int(n)
    if numpy is not None:
        made = numpy.zeros(tuple(int(n) for n in shape), dtype=_NUMPY_TYPES[code])
        return made, made.ctypes.data
    storage = array.array("B" if code == "?" else code, bytes(count * (4 if code in "fi" else 1)))
    view = memoryview(storage)
    if count and (code == "?" or len(shape) != 1):  # (a memoryview cannot have a 0 in its shape: it stays flat)
        view = view.cast("B").cast(code, [int(n) for n in shape])
    return view, storage.buffer_info()[0]


def copied(code: str, pointer: Any, shape: Sequence[int]) -> Any:
    """A copy of what a ctypes pointer points to."""
    out, address = empty(code, shape)
    size = 4 if code in "fi" else 1
    for n in shape:
        size *= int(n)
    if size:
        ctypes.memmove(address, pointer, size)
    return out


def ids(numbers: Iterable[int]) -> Tuple[Any, List[int]]:
    """A C array of int32 with these numbers, and them as a list. OverflowError, TypeError: they are no such numbers."""
    try:
        kept = array.array("i", numbers.tolist() if hasattr(numbers, "tolist") else numbers)
    except (TypeError, OverflowError) as error:
        raise type(error)(f"token ids are whole numbers of 32 bits: {error}") from None
    return (ctypes.c_int32 * len(kept)).from_buffer(kept) if kept else (ctypes.c_int32 * 1)(), kept.tolist()
