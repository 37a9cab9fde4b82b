"""Generations: sessions, streams."""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from . import _arrays, _layout, _options
from ._errors import TokenSkipError
from ._library import Native, State, call, call_with, callback, library
from ._results import Candidate, Probe, Result, Selection, Step, probe_of, result_of, selection_of, step_of
from ._tokenizer import _take_text
from ._trace import Trace, record_of

OnStep = Callable[[Step], Any]
OnSelect = Callable[[Selection], Optional[Iterable[Union[Candidate, int]]]]
Cancel = Union[Callable[[], Any], threading.Event]

_PROBES = {"step": "TSK_PROBE_STEP", "all": "TSK_PROBE_STEP_ALL", "refresh": "TSK_PROBE_REFRESH"}


def asks(cancel: Optional[Cancel]) -> Optional[Callable[[], Any]]:
    """A function that says whether to end: that of the caller, or an Event's is_set."""
    is_set = getattr(cancel, "is_set", None)
    return is_set if is_set is not None else cancel  # type: ignore[return-value]


class Callbacks:
    """The C callbacks of one generation, in its options struct. They keep `state`, never the session: what a user's
    function refers to is collected together with it."""

    def __init__(self, state: State, model: Any, options: _layout.tsk_generate_options, on_step: Optional[OnStep],
                 on_select: Optional[OnSelect], cancel: Optional[Cancel], keeps_steps: bool = False):
        self.state = state
        self.step: Optional[Step] = None  # of the pass just made
        self.text = ""
        tokenizer, ask = model.tokenizer, asks(cancel)

        def stepped(pointer: Any) -> int:
            text = None
            if tokenizer is not None:
                out = _layout.tsk_text()
                with tokenizer._use() as t:
                    call("tsk_step_text", t, pointer, ctypes.byref(out))
                text = _take_text(out)
            self.step = step_of(pointer.contents, text, self.text)
            self.text = text or ""
            return int(bool(on_step(self.step))) if on_step is not None else 0

        def selected(pointer: Any) -> None:
            selection = selection_of(pointer.contents)
            index = {c.position: i for i, c in enumerate(selection.candidates)}
            for chosen in on_select(selection) or ():  # type: ignore[misc]
                position: Any = getattr(chosen, "position", chosen)
                if position not in index:
                    raise ValueError(f"on_select chose position {position!r}, which is none of the candidates")
                pointer.contents.commit[index[position]] = 1

        def cancelled() -> int:
            if ask is not None and not state.cancelled and ask():
                state.cancelled = True
            return int(state.cancelled)

        kinds = _layout
        if on_step is not None or keeps_steps:
            self._on_step = callback(kinds.tsk_generate_options_on_step, state, stepped, 1)
            options.on_step = self._on_step
        if on_select is not None:
            self._on_select = callback(kinds.tsk_generate_options_on_select, state, selected)
            options.on_select = self._on_select
        self._cancel = callback(kinds.tsk_generate_options_cancel, state, cancelled, 1)
        options.cancel = self._cancel

    def begin(self) -> None:
        self.step, self.text = None, ""
        self.state.cancelled, self.state.error = False, None


class Session:
    """Generations of one model, one after another, a pass at a time; from model.session().

    A session belongs to one thread at a time: calls of others wait. cancel() and close() may come from any thread.
    It keeps its model alive.

    Attributes:
        model: what it was made from.
        options: the keywords it was made with.
    """

    def __init__(self, model: Any, on_step: Optional[OnStep] = None, on_select: Optional[OnSelect] = None,
                 cancel: Optional[Cancel] = None, _keeps_steps: bool = True, **options: Any):
        """Not to be called: use model.session(**options)."""
        self._native: Optional[Native] = None
        struct = _options.build("session", options, model.config.block_length > 0)
        self.model = model
        self.options: Dict[str, Any] = dict(options)
        self._user = {"on_step": on_step, "on_select": on_select, "cancel": cancel}
        self._eos_stop = bool(struct.eos_stop)
        self._gen_length = struct.gen_length
        self._state = State()
        self._callbacks = Callbacks(self._state, model, struct, on_step, on_select, cancel, _keeps_steps)
        self._lock = threading.RLock()
        self._finished = True
        self._trace: Optional[Trace] = None
        self._trace_callback: Any = None
        self._canvas: List[int] = []  # that a traced pass runs on
        self._probed = 0
        pointer = ctypes.c_void_p()
        with model._native.inside() as m:
            call("tsk_session_create", m, ctypes.byref(struct), ctypes.byref(pointer))
            native = Native("session", pointer.value or 0, "tsk_session_free", model._native,
                            model._native.survives_fork)
        self._native = native
        weakref.finalize(self, native.close)

    # ---- A generation

    def start(self, prompt: Any, generated: Optional[Iterable[int]] = None, *, system: Optional[str] = None,
              raw: bool = False) -> "Session":
        """Begins a generation, and ends the one before. Returns the session.

        Args:
            prompt: as for Model.generate(). Ids may hold the mask's id: these positions are filled first (infilling).
            generated: None (all masked), or gen_length ids: the mask's id where free, elsewhere ids that stay.
        """
        array, ids = _arrays.ids(self.model._prompt(prompt, system, raw))
        fixed, listed = (None, None) if generated is None else _arrays.ids(generated)
        if listed is not None and len(listed) != self._gen_length:
            raise ValueError(f"generated has {len(listed)} ids, and gen_length is {self._gen_length}")
        with self._lock, self._use() as s:
            self._callbacks.begin()
            self._finished = True
            call("tsk_session_start", s, array, len(ids), fixed)
            self._finished = False
        return self

    def step(self) -> Optional[Step]:
        """One forward pass and its commits. Returns what it did; None where nothing was left to do, or cancelled."""
        with self._lock, self._use() as s:
            self._callbacks.step = None
            self._remember_canvas(s)
            finished = ctypes.c_int()
            call_with(self._state, "tsk_session_step", s, ctypes.byref(finished))
            self._finished = bool(finished.value)
            return self._callbacks.step

    def steps(self) -> Iterator[Step]:
        """The passes that are left, one by one."""
        while not self._finished:
            step = self.step()
            if step is not None:
                yield step

    @property
    def finished(self) -> bool:
        """Nothing is left to do, or nothing was started."""
        return self._finished

    def result(self) -> Result:
        """The state so far; after the last step the generation's result."""
        with self._lock, self._use() as s:
            found = _layout.tsk_result()
            library().tsk_session_result(s, ctypes.byref(found))
            return result_of(found, self.model, self._eos_stop)

    def generate(self, prompt: Any, generated: Optional[Iterable[int]] = None, *, system: Optional[str] = None,
                 raw: bool = False) -> Result:
        """start(), all steps, result(). Ctrl-C ends it between two passes, with KeyboardInterrupt."""
        with self._lock:
            self.start(prompt, generated, system=system, raw=raw)
            while not self._finished:
                self.step()
            return self.result()

    def cancel(self) -> None:
        """Ends the generation before its next pass; what is committed stays (finish_reason "cancelled"). Any thread.
        A generation that begins later is not touched: to cancel one that may not have begun, give `cancel` an Event."""
        self._state.cancelled = True

    # ---- Looking at a generation

    def copy(self, **changes: Any) -> "Session":
        """A new session in the state of this one: canvas, caches, place in the generation, and TokenSkip's states where
        both have the same skip_layer_k. Allowed in this session's own on_step.

        Args:
            changes: options that the copy has in place of this session's: any but gen_length and block_length.
                A skip_preset comes before this session's own options. on_step, on_select and cancel are not taken over.
        """
        callbacks = {name: changes.pop(name) for name in list(changes) if name in self._user}
        preset = _options.PRESETS.get(changes.get("skip_preset", ""), {})
        mine = {name: value for name, value in self.options.items() if name not in preset}
        made = Session(self.model, **callbacks, **{**mine, **changes})
        try:
            made.copy_from(self)
        except BaseException:
            made.close()
            raise
        return made

    def copy_from(self, other: "Session") -> None:
        """Takes the state of `other`, a session of the same model, gen_length and block_length."""
        with self._lock, other._lock, self._use() as mine, other._use() as theirs:
            self._callbacks.begin()
            call("tsk_session_copy", mine, theirs)
            self._finished, self._callbacks.text = other._finished, other._callbacks.text

    def probe(self, kind: str = "step", canvas: Optional[Iterable[int]] = None) -> Probe:
        """The current block's next forward pass, committing nothing: caches and TokenSkip's states move on.

        Args:
            kind: "step": a block step under the session's rule (cache "dual", after a pass); "all": one that leaves
                nothing out; "refresh": the canvas, as far as it is visible.
            canvas: ids [n_prompt + gen_length] that the pass runs on; None: the session's own.
        """
        if kind not in _PROBES:
            raise ValueError(f"kind takes {', '.join(map(repr, _PROBES))}, not {kind!r}")
        array, listed = (None, None) if canvas is None else _arrays.ids(canvas)
        with self._lock, self._use() as s:
            self._remember_canvas(s)
            if listed is not None:
                whole = _layout.tsk_result()
                library().tsk_session_result(s, ctypes.byref(whole))
                wanted = whole.n_prompt + whole.n_tokens
                if wanted and len(listed) != wanted:
                    raise ValueError(f"canvas has {len(listed)} ids, and prompt and gen_length make {wanted}")
                self._canvas = listed
            out = _layout.tsk_probe()
            call_with(self._state, "tsk_session_probe", s, array,
                      _layout.ENUMS["tsk_probe_kind"][_PROBES[kind]], ctypes.byref(out))
            self._probed = out.n_positions
            return probe_of(out)

    def probe_logits(self, final_norm: bool = False) -> Any:
        """Right after probe(): the block's logits, float32 [n_positions, embedding_size]. NaN for a token that rule
        rows left out.

        Args:
            final_norm: True: (final_norm, logits), the first float32 [n_positions, d_model].
        """
        config = self.model.config
        with self._lock, self._use() as s:
            logits, address = _arrays.empty("f", (self._probed, config.embedding_size))
            states, states_address = _arrays.empty("f", (self._probed, config.d_model))
            kind = ctypes.POINTER(ctypes.c_float)
            call("tsk_session_probe_logits", s, ctypes.cast(states_address, kind) if final_norm else None,
                 ctypes.cast(address, kind))
        return (states, logits) if final_norm else logits

    def logits(self, tokens: Iterable[int], first: int = 0, count: Optional[int] = None) -> Any:
        """One full forward pass over `tokens`: logits of positions [first, first + count), float32 [count,
        embedding_size]. It ends a generation in progress.

        Args:
            count: None: all from `first` on.
        """
        array, ids = _arrays.ids(tokens)
        count = len(ids) - first if count is None else count
        if not 0 <= first <= first + count <= len(ids):
            raise ValueError(f"positions {first} to {first + count} of {len(ids)} tokens")
        with self._lock, self._use() as s:
            logits, address = _arrays.empty("f", (count, self.model.config.embedding_size))
            self._finished, self._canvas = True, ids
            call_with(self._state, "tsk_session_logits", s, array, len(ids), first, count,
                      ctypes.cast(address, ctypes.POINTER(ctypes.c_float)))
        return logits

    def trace(self, pattern: Optional[str] = None, *, values: bool = True, layers: Tuple[int, int] = (0, 2**31 - 1),
              passes: Tuple[int, int] = (0, 2**31 - 1), on_record: Optional[Callable[[Any], Any]] = None) -> Trace:
        """Records of every later pass of this session, step() and probe() alike, until the trace is closed or another
        begun. No result changes. Use it in a `with`, or close() it.

        Args:
            pattern: which names: * and ? as in a shell; None: all. See Record for the names.
            values: True: records carry input and output. Of a large model and all names that is gigabytes a pass.
            layers, passes: first and last, both included. Records outside the blocks have no layer and always come.
            on_record: called with each record instead of keeping it in the trace.
        """
        trace = Trace(self._end_trace)
        records = trace.records
        me = weakref.ref(self)

        def recorded(pointer: Any) -> None:
            session = me()
            record = record_of(pointer.contents, session._canvas if session is not None else [])
            if on_record is None:
                records.append(record)
            else:
                on_record(record)

        options = library().tsk_trace_options_default()
        options.pattern = pattern.encode() if pattern is not None else None
        options.first_layer, options.last_layer = layers
        options.first_pass, options.last_pass = passes
        options.values = int(bool(values))
        made = callback(_layout.tsk_trace_options_on_record, self._state, recorded)
        options.on_record = made
        with self._lock, self._use() as s:
            call("tsk_session_trace", s, ctypes.byref(options))
            self._trace, self._trace_callback = trace, made
        return trace

    def _end_trace(self, trace: Trace) -> None:
        with self._lock:
            if self._trace is not trace or self.closed:
                return
            with self._use() as s:
                call("tsk_session_trace", s, None)
            self._trace = self._trace_callback = None

    def _remember_canvas(self, pointer: int) -> None:
        """A traced pass says which ids it ran on."""
        if self._trace is None:
            return
        found = _layout.tsk_result()
        library().tsk_session_result(pointer, ctypes.byref(found))
        length = found.n_prompt + found.n_tokens
        self._canvas = found.canvas[:length] if length else []

    # ---- The end

    def _use(self) -> Any:
        assert self._native is not None
        return self._native.use()

    @property
    def closed(self) -> bool:
        return self._native is None or self._native.closed

    def close(self) -> None:
        """Frees it, once a call that is under way has returned; a generation under way ends. Twice is fine."""
        if self._native is not None:
            self._state.cancelled = True
            self._native.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()


class Stream(Iterator[Step]):
    """A generation as an iterator of its passes (Step); from model.stream(). Leaving it early ends the generation:
    close(), the `with`, or nobody holding it any more.

        with model.stream("Who is Newton in physics?") as stream:
            for step in stream:
                print(step.new_text, end="", flush=True)
        print(stream.result.nfe)
    """

    def __init__(self, session: Session):
        """Not to be called: use model.stream()."""
        self._session = session
        self._result: Optional[Result] = None

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Step:
        while not self._session.closed and not self._session.finished:
            step = self._session.step()
            if step is not None:
                return step
        self.close()
        raise StopIteration

    @property
    def result(self) -> Result:
        """What there is so far; after the last step, or close(), the result."""
        if self._result is None:
            return self._session.result()
        return self._result

    def cancel(self) -> None:
        """Ends the generation before its next pass. Any thread."""
        self._session.cancel()

    def close(self) -> None:
        """Ends the generation here; `result` says what came. Twice is fine."""
        if self._result is not None or self._session.closed:
            return
        if not self._session.finished:
            self._session.cancel()
            try:
                self._session.step()  # makes no pass: it takes note
            except TokenSkipError:
                pass  # a generation that has failed gives its error again
        self._result = self._session.result()
        self._session.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()
