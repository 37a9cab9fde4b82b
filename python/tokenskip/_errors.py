"""The exceptions: one class for each status of the library, under one base."""

from __future__ import annotations

from typing import Dict, Optional, Type

from . import _layout


class TokenSkipError(Exception):
    """Whatever the library refuses or fails at.

    Attributes:
        message: one line: what was wrong with which input, what was expected, what was found.
        status: the number of the C library's status (tsk_status); 0 where the error is of this module.
        file: the file it is about, or None.
        offset: the byte offset in that file or text, or None.
    """

    def __init__(self, message: str, status: int = 0, file: Optional[str] = None, offset: Optional[int] = None):
        super().__init__(message)
        self.message = message
        self.status = status
        self.file = file
        self.offset = offset

    def __str__(self) -> str:
        return self.message


class LibraryError(TokenSkipError, ImportError):
    """libtokenskip.so was not found, cannot be loaded, or is of another version; the message lists what was tried."""


class ClosedError(TokenSkipError, ValueError):
    """A model, session, stream or batch was used after its close()."""


class ArgumentError(TokenSkipError, ValueError):
    """TSK_ERROR_ARGUMENT: invalid argument."""


class OutOfMemoryError(TokenSkipError, MemoryError):
    """TSK_ERROR_MEMORY: out of memory."""


class FileError(TokenSkipError, OSError):
    """TSK_ERROR_IO: a file or folder cannot be read."""


class JsonError(TokenSkipError):
    """TSK_ERROR_JSON: malformed JSON."""


class SafetensorsError(TokenSkipError):
    """TSK_ERROR_SAFETENSORS: malformed safetensors file."""


class ConfigError(TokenSkipError):
    """TSK_ERROR_CONFIG: invalid model configuration."""


class TensorError(TokenSkipError):
    """TSK_ERROR_TENSOR: a tensor is missing or not as the configuration says."""


class TokenizerError(TokenSkipError):
    """TSK_ERROR_TOKENIZER: invalid tokenizer."""


class TemplateError(TokenSkipError):
    """TSK_ERROR_TEMPLATE: unknown chat template."""


class UnsupportedError(TokenSkipError):
    """TSK_ERROR_UNSUPPORTED: a model or format that the library does not run."""


class DeviceError(TokenSkipError):
    """TSK_ERROR_DEVICE: the device is not there or has failed."""


class CompileError(TokenSkipError):
    """TSK_ERROR_COMPILE: the GPU's kernels did not compile."""


class CancelledError(TokenSkipError):
    """TSK_ERROR_CANCELLED: loading was cancelled. (A cancelled generation is no error: see Result.finish_reason.)"""


class NumericError(TokenSkipError):
    """TSK_ERROR_NUMERIC: logits that are no numbers, as of a model with damaged weights."""


class QueueFullError(TokenSkipError):
    """TSK_ERROR_FULL: max_queued requests of a batch wait already."""


_BY_NAME: Dict[str, Type[TokenSkipError]] = {
    "TSK_ERROR_ARGUMENT": ArgumentError,
    "TSK_ERROR_MEMORY": OutOfMemoryError,
    "TSK_ERROR_IO": FileError,
    "TSK_ERROR_JSON": JsonError,
    "TSK_ERROR_SAFETENSORS": SafetensorsError,
    "TSK_ERROR_CONFIG": ConfigError,
    "TSK_ERROR_TENSOR": TensorError,
    "TSK_ERROR_TOKENIZER": TokenizerError,
    "TSK_ERROR_TEMPLATE": TemplateError,
    "TSK_ERROR_UNSUPPORTED": UnsupportedError,
    "TSK_ERROR_DEVICE": DeviceError,
    "TSK_ERROR_COMPILE": CompileError,
    "TSK_ERROR_CANCELLED": CancelledError,
    "TSK_ERROR_NUMERIC": NumericError,
    "TSK_ERROR_FULL": QueueFullError,
}
BY_STATUS: Dict[int, Type[TokenSkipError]] = {
    status: _BY_NAME[name] for name, status in _layout.ENUMS["tsk_status"].items() if name in _BY_NAME
}


def from_struct(error: _layout.tsk_error) -> TokenSkipError:
    """The exception that says what a tsk_error says."""
    kind = BY_STATUS.get(error.status, TokenSkipError)
    return kind(
        error.message.decode("utf-8", "replace"),
        error.status,
        error.file.decode("utf-8", "surrogateescape") or None,
        None if error.offset == _layout.TSK_NO_OFFSET else error.offset,
    )
