"""Masked-diffusion language models (LLaDA) with TokenSkip: tokenskip.h from Python, through ctypes.

    import tokenskip

    with tokenskip.Model.load("examples/demo-model") as model:
        print(model.generate("Who is Newton in physics?").text)

        with model.stream("What is 84 + 23 - 39?", threshold=None, steps=32) as stream:
            for step in stream:
                print(step.pass_, step.committed, step.text)

        with model.batch(max_requests=8) as batch:
            for result in batch.map(["What is 12 + 30?", "What is 90 - 4?"]):
                print(result.text)

        with model.session(threshold=None) as session, session.trace("layer_*") as trace:
            session.start("Who is Newton in physics?")
            session.step()
            print(trace.get("layer_3").output)     # float32 [rows, d_model]: NumPy where NumPy is there

The library, libtokenskip.so, is looked for at the first use: where TOKENSKIP_LIBRARY says, beside this package, then
where the system looks. It must have this package's version. Python 3.9 or newer; NumPy is not needed: without it arrays
are memoryviews of the same shape.

Whatever goes wrong in the library is a TokenSkipError; each status has a class of its own.
"""

from __future__ import annotations

from ._batch import Batch, BatchStatus, Request
from ._errors import (
    ArgumentError, CancelledError, ClosedError, CompileError, ConfigError, DeviceError, FileError, JsonError,
    LibraryError, NumericError, OutOfMemoryError, QueueFullError, SafetensorsError, TemplateError, TensorError,
    TokenizerError, TokenSkipError, UnsupportedError,
)
from ._library import library_path
from ._model import Model, devices
from ._results import (
    Block, Candidate, DeviceInfo, ModelConfig, Probe, Result, Selection, SkipCounts, Step, Timing, select,
)
from ._session import Session, Stream
from ._tokenizer import Decoder, Prompt, Tokenizer
from ._trace import Record, Stats, Trace

__version__ = "0.2.0.dev0"

__all__ = [
    "ArgumentError", "Batch", "BatchStatus", "Block", "CancelledError", "Candidate", "ClosedError", "CompileError",
    "ConfigError", "Decoder", "DeviceError", "DeviceInfo", "FileError", "JsonError", "LibraryError", "Model",
    "ModelConfig", "NumericError", "OutOfMemoryError", "Probe", "Prompt", "QueueFullError", "Record", "Request",
    "Result", "SafetensorsError", "Selection", "Session", "SkipCounts", "Stats", "Step", "Stream", "TemplateError",
    "TensorError", "Timing", "TokenSkipError", "Tokenizer", "TokenizerError", "Trace", "UnsupportedError",
    "devices", "library_path", "library_version", "select",
]


def library_version() -> str:
    """The version that the C library calls itself: "0.2.0-dev"."""
    from ._library import library

    return str(library().tsk_version_string().decode())
