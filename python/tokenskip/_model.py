"""Models and devices."""

from __future__ import annotations

import ctypes
import os
import re
import time
import weakref
from typing import Any, Callable, Iterable, List, Mapping, Optional, Sequence, Union

from . import _layout
from ._batch import Batch
from ._library import Native, State, call_with, callback, library
from ._options import _whole, check_names
from ._results import DeviceInfo, ModelConfig, Result, config_of
from ._session import Cancel, OnSelect, OnStep, Session, Stream, asks
from ._tokenizer import Message, Prompt, Tokenizer

_DTYPES = {"auto": "TSK_DTYPE_AUTO", "f32": "TSK_DTYPE_F32", "bf16": "TSK_DTYPE_BF16"}
_WEIGHTS = {"as-stored": "TSK_WEIGHTS_AS_STORED", "q8": "TSK_WEIGHTS_Q8", "q4": "TSK_WEIGHTS_Q4"}


def _set_device(options: _layout.tsk_model_options, device: str) -> None:
    match = re.fullmatch(r"(auto|cpu|cuda)(?::([0-9]+))?", device) if isinstance(device, str) else None
    if not match or (match[2] and match[1] != "cuda"):
        raise ValueError(f"device takes 'auto', 'cpu', 'cuda' or 'cuda:N', not {device!r}")
    options.device = _layout.ENUMS["tsk_device"]["TSK_DEVICE_" + match[1].upper()]
    options.device_index = int(match[2] or 0)


def devices() -> List[DeviceInfo]:
    """The CPU, then the GPUs in the driver's order; where there are none, one entry for CUDA says why. Asks the driver,
    which takes up to a second a GPU."""
    room = 16
    while True:
        found = (_layout.tsk_device_info * room)()
        count = library().tsk_devices(found, room)
        if count <= room:
            break
        room = count
    cuda = _layout.ENUMS["tsk_device"]["TSK_DEVICE_CUDA"]
    return [
        DeviceInfo(f"cuda:{d.index}" if d.device == cuda else "cpu", d.name.decode("utf-8", "replace"),
                   d.memory_total, d.memory_free, d.unusable.decode("utf-8", "replace"))
        for d in found[:count]
    ]


class Model:
    """A model, loaded by Model.load(). Immutable: any number of threads, sessions and batches may use it.

    Attributes:
        path: its folder.
        config: its sizes and special ids (ModelConfig).
        device_name: where it runs: "CPU, AVX-512, 2 threads".
        device_note: why device "auto" did not use a GPU; "" where it did or was not asked to.
        dtype: of activations and cache: "f32" or "bf16".
        load_ms: how long loading took, in milliseconds.
    """

    def __init__(self, native: Native, path: str, load_ms: float):
        """Not to be called: use Model.load()."""
        lib = library()
        pointer = native.retain()
        try:
            self.path = path
            self.load_ms = load_ms
            self.config: ModelConfig = config_of(lib.tsk_model_get_config(pointer).contents)
            self.device_name: str = lib.tsk_model_device_name(pointer).decode("utf-8", "replace")
            self.device_note: str = lib.tsk_model_device_note(pointer).decode("utf-8", "replace")
            self.dtype: str = lib.tsk_dtype_name(lib.tsk_model_dtype(pointer)).decode().lower()
            self._tokenizer: Optional[int] = lib.tsk_model_tokenizer(pointer)
        finally:
            native.release()
        self._native = native
        weakref.finalize(self, native.close)

    @classmethod
    def load(cls, path: Union[str, "os.PathLike[str]"], *, device: str = "auto", dtype: str = "auto",
             weights: str = "as-stored", threads: int = 0, tokenizer: bool = True, no_map: bool = False,
             kernel_cache_dir: Optional[str] = None, progress: Optional[Callable[[int, int], Any]] = None,
             cancel: Optional[Cancel] = None, log: Optional[Callable[[str], Any]] = None) -> "Model":
        """Loads a Hugging Face folder as it is.

        Args:
            device: "auto": the first GPU that can be used, else the CPU; "cpu", "cuda", "cuda:1".
            dtype: of activations and cache: "auto" (CPU f32, GPU bf16), "f32", "bf16" (GPU only).
            weights: what matrices are held as: "as-stored", or quantised while loading, "q8" or "q4".
            threads: CPU threads, the calling one included; 0: one a processor.
            tokenizer: False: do not load one.
            no_map: True: files are read, not mapped, so that one cut while in use cannot end the process.
            kernel_cache_dir: where compiled GPU kernels are kept; None: ~/.cache/tokenskip; "": nowhere.
            progress: called with bytes done and bytes in all while loading.
            cancel: a function or threading.Event that is asked while loading; true ends it with CancelledError.
            log: called with remarks, a line each.
        """
        options = library().tsk_model_options_default()
        state = State()
        kinds = _layout
        _set_device(options, device)
        if dtype not in _DTYPES:
            raise ValueError(f"dtype takes {', '.join(map(repr, _DTYPES))}, not {dtype!r}")
        options.dtype = _layout.ENUMS["tsk_dtype"][_DTYPES[dtype]]
        if weights not in _WEIGHTS:
            raise ValueError(f"weights takes {', '.join(map(repr, _WEIGHTS))}, not {weights!r}")
        options.weights = _layout.ENUMS["tsk_weights"][_WEIGHTS[weights]]
        options.n_threads = _whole(0, 1024)("threads", threads) or _layout.TSK_AUTO
        options.no_tokenizer = int(not tokenizer)
        options.host.no_map = int(bool(no_map))
        if kernel_cache_dir is not None:
            options.kernel_cache_dir = os.fsencode(kernel_cache_dir)
        ask = asks(cancel)
        keep = [callback(kinds.tsk_model_options_cancel, state,
                         lambda: int(state.cancelled or bool(ask is not None and ask())), 1)]
        options.cancel = keep[0]
        if progress is not None:
            keep.append(callback(kinds.tsk_model_options_progress, state, progress))
            options.progress = keep[-1]
        if log is not None:
            keep.append(callback(kinds.tsk_model_options_log, state,
                                 lambda line: log(line.decode("utf-8", "replace"))))  # type: ignore[misc]
            options.log = keep[-1]
        pointer = ctypes.c_void_p()
        before = time.monotonic()
        try:
            call_with(state, "tsk_model_load", os.fsencode(path), ctypes.byref(options), ctypes.byref(pointer))
        except BaseException:
            if pointer.value:
                library().tsk_model_free(pointer)
            raise
        load_ms = (time.monotonic() - before) * 1e3
        device_name = library().tsk_model_device_name(pointer)
        native = Native("model", pointer.value or 0, "tsk_model_free", survives_fork=device_name.startswith(b"CPU"))
        native.keep += keep
        return cls(native, os.fspath(path), load_ms)

    @property
    def tokenizer(self) -> Optional[Tokenizer]:
        """Its tokenizer, which keeps the model alive; None where the folder has none."""
        return Tokenizer(self._native, self._tokenizer, self) if self._tokenizer else None

    def _prompt(self, prompt: Any, system: Optional[str] = None, raw: bool = False) -> Sequence[int]:
        """Token ids of whatever generate() takes for a prompt."""
        if isinstance(prompt, (bytes, bytearray)):
            raise TypeError("a prompt is text, messages or token ids, not bytes")
        if not isinstance(prompt, str):
            if hasattr(prompt, "tolist"):
                prompt = prompt.tolist()
            listed: List[Any] = list(prompt)
            if not listed or not isinstance(listed[0], (Mapping, tuple, list)):
                if system is not None or raw:
                    raise ValueError("system and raw need a prompt as text")
                return listed
            prompt = listed
        if raw and system is not None:
            raise ValueError("system needs the chat template, which raw leaves out")
        if self.tokenizer is None:
            raise ValueError(f"{self.path}: the model has no tokenizer: give the prompt as token ids")
        if raw:
            return self.tokenizer.encode(prompt, special=True)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.tokenizer.chat(messages)

    def chat(self, messages: Sequence[Message], special: bool = False) -> Prompt:
        """A conversation as token ids, ready to generate from. `.text` of what comes back is the rendered template.

        Args:
            messages: {"role": ..., "content": ...} or (role, content); roles: "system", "user", "assistant".
            special: True: special tokens spelled out in the messages count; only for text that you trust.
        """
        if self.tokenizer is None:
            raise ValueError(f"{self.path}: the model has no tokenizer")
        return self.tokenizer.chat(messages, special)

    def generate(self, prompt: Any, *, system: Optional[str] = None, raw: bool = False,
                 generated: Optional[Iterable[int]] = None, on_step: Optional[OnStep] = None,
                 on_select: Optional[OnSelect] = None, cancel: Optional[Cancel] = None, **options: Any) -> Result:
        """Answers one prompt.

        Args:
            prompt: text (a user's message, rendered by the chat template), a list of messages, or token ids.
            system: a system message before it.
            raw: True: no chat template; special tokens spelled out in the text count.
            generated: None, or gen_length ids: the mask's id where free, elsewhere ids that stay.
            on_step: called with a Step after every forward pass; a true value ends the generation.
            on_select: a decoding rule of your own: called with a Selection, gives the candidates (or positions) to
                commit; none of them: the most confident one.
            cancel: a function or threading.Event that is asked before every pass; true ends the generation.
            options: the command's options:
                gen_length=128, block_length=32 (a shorter gen_length is one block), steps=None (gen_length);
                cache="dual" | "prefix" | "none"; of a model that attends by blocks "block", its only one, with
                block_length=None (the model's), small_block=None (the model's), prompt_rows=2048;
                threshold=0.9 | None (LLaDA's schedule: a fixed number each step); instead of it factor (Fast-dLLM's
                rule), frechet (Fast-dLLM++'s), entropy_bound (EB-Sampler's); beside it local_leap, local_radius=4;
                temperature=0.0, seed=0, remasking="low_confidence" | "random", eos_stop=True, end_of_turn_id="auto";
                skip_rule="off" | "states" | "rows"; rows_margin=4, rows_ahead=0; skip_layer_k=None,
                skip_threshold=0.95, skip_outlier=0.7, skip_masked=False, skip_policy="reuse" | "exit",
                skip_reference="last-step" | "last-computed", skip_max_age=0, skip_full_every=0,
                skip_warm_start=False, skip_refresh=False; skip_preset="default" | "fast" | "careful" | "seed";
                refresh="full" | "near", near=16, window=0, refresh_every=None, refresh_rows=0.
                None is the default of each, but of threshold. What each means: README, and tokenskip.h.

        An exception of a callback ends the generation and comes out here. Ctrl-C ends it between two passes.
        """
        with self._session("generate", options, on_step, on_select, cancel, keeps_steps=False) as session:
            return session.generate(prompt, generated, system=system, raw=raw)

    def stream(self, prompt: Any, *, system: Optional[str] = None, raw: bool = False,
               generated: Optional[Iterable[int]] = None, on_select: Optional[OnSelect] = None,
               cancel: Optional[Cancel] = None, **options: Any) -> Stream:
        """The same, a pass at a time: an iterator of Step. Closing it early ends the generation. See Stream."""
        session = self._session("stream", options, None, on_select, cancel, keeps_steps=True)
        try:
            session.start(prompt, generated, system=system, raw=raw)
        except BaseException:
            session.close()
            raise
        return Stream(session)

    def session(self, *, on_step: Optional[OnStep] = None, on_select: Optional[OnSelect] = None,
                cancel: Optional[Cancel] = None, **options: Any) -> Session:
        """A session for any number of generations with these options, and for looking inside one. See Session."""
        return self._session("session", options, on_step, on_select, cancel, keeps_steps=True)

    def _session(self, function: str, options: Mapping[str, Any], on_step: Any, on_select: Any, cancel: Any,
                 keeps_steps: bool) -> Session:
        self._native.check_open()
        check_names(function, options)
        return Session(self, on_step, on_select, cancel, _keeps_steps=keeps_steps, **options)

    def batch(self, **options: Any) -> Batch:
        """Many requests at once (continuous batching). See Batch for the options."""
        return Batch(self, **options)

    @property
    def closed(self) -> bool:
        return self._native.closed

    def close(self) -> None:
        """Frees it, once its sessions and batches are closed and no call is under way. Twice is fine."""
        self._native.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.path!r} on {self.device_name}{', closed' if self.closed else ''}>"
