"""Many requests in flight at once (continuous batching)."""

from __future__ import annotations

import atexit
import concurrent.futures
import ctypes
import itertools
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from . import _arrays, _layout, _options
from ._errors import TokenSkipError, from_struct
from ._library import Native, State, call, callback, interruptible, library
from ._results import Result, result_of
from ._session import Callbacks, Cancel, OnSelect, OnStep


@dataclass(frozen=True)
class BatchStatus:
    """What one step of a batch did, and what is left.

    Attributes:
        in_flight, queued: requests after the step.
        ending: cancelled while they queued; their results come with the next step.
        rows: in the pass.
        row_layers: rows times layers, as if no token skipped any.
        ms: wall-clock time of the pass in milliseconds.
    """

    in_flight: int
    queued: int
    ending: int
    rows: int
    row_layers: int
    ms: float


class Request(concurrent.futures.Future):  # type: ignore[type-arg]
    """A request of a batch, and a concurrent.futures.Future of its Result: result(timeout), done(), exception(),
    add_done_callback(); concurrent.futures.as_completed() and asyncio.wrap_future() take it.

    Attributes:
        id: its number in the batch, from 1.
        prompt: as it was given to submit().
    """

    def __init__(self, batch: "Batch", prompt: Any):
        """Not to be called: use batch.submit()."""
        super().__init__()
        self.id = 0
        self.prompt = prompt
        self._batch: Optional["Batch"] = batch
        self._state = State()
        self._callbacks: Optional[Callbacks] = None
        self._eos_stop = True

    def cancel(self) -> bool:
        """Ends the request before its next pass; its Result then has finish_reason "cancelled" and what was committed.
        False where it is over already. Any thread."""
        batch = self._batch
        if self.done() or batch is None:
            return False
        self._state.cancelled = True
        if self.id:
            batch._core.cancel(self.id)
        return True

    def result(self, timeout: Optional[float] = None) -> Result:
        """The Result, once the request is over. Raises what ended it, TimeoutError after `timeout` seconds, or
        concurrent.futures.CancelledError where the batch was closed before."""
        self._help(timeout)
        return super().result(timeout)  # type: ignore[no-any-return]

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        """What ended the request, or None."""
        self._help(timeout)
        return super().exception(timeout)

    def _help(self, timeout: Optional[float]) -> None:
        """In a batch without a thread of its own, who waits makes the steps."""
        batch = self._batch
        while timeout is None and batch is not None and batch._core.pump is None and not self.done():
            batch.step()

    def _finish(self, outcome: Any) -> None:
        self._batch = None
        try:
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)
        except concurrent.futures.InvalidStateError:
            pass  # (the batch was closed, and this one with it)

    def _drop(self) -> None:
        self._batch = None
        if super().cancel():
            self.set_running_or_notify_cancel()


class _Core:
    """What the thread that steps a batch works on; it does not keep the Batch."""

    def __init__(self, model: Any):
        self.model = model
        self.native: Any = None
        self.lock = threading.Lock()          # of `requests`
        self.stepping = threading.RLock()
        self.requests: Dict[int, Request] = {}
        self.ended: List[Tuple[Request, Any]] = []
        self.keys = itertools.count(1)
        self.pump: Optional[threading.Thread] = None
        self.stopping = False
        self.state = State()
        self.on_done = callback(_layout.tsk_batch_options_on_done, self.state, self.take)

    def take(self, id: int, key: int, result: Any, error: Any) -> None:
        """on_done: called from tsk_batch_step. Futures are resolved when that has returned."""
        with self.lock:
            request = self.requests.pop(key, None)
        if request is None:
            return  # dropped by close()
        outcome: Any
        if request._state.error is not None:
            outcome = request._state.error
        elif result:
            outcome = result_of(result.contents, self.model, request._eos_stop)
        else:
            outcome = from_struct(error.contents)
        self.ended.append((request, outcome))

    def step(self) -> BatchStatus:
        with self.stepping:
            status, error = _layout.tsk_batch_status(), _layout.tsk_error()
            with self.native.inside() as b, interruptible(self.state):
                failed = library().tsk_batch_step(b, ctypes.byref(status), ctypes.byref(error))
            ended, self.ended = self.ended, []
        for request, outcome in ended:
            request._finish(outcome)
        self.state.raise_error()
        if failed and not ended:
            raise from_struct(error)
        return BatchStatus(status.in_flight, status.queued, status.ending, status.rows, status.row_layers, status.ms)

    def run(self) -> None:
        """The thread."""
        try:
            with self.native.inside() as b:
                while not self.stopping:
                    if library().tsk_batch_wait(b, _layout.TSK_NONE) and not self.stopping:
                        self.step()
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        self.stopping = True
        with self.lock:
            left, self.requests = list(self.requests.values()), {}
        for request in left:
            request._finish(error)

    def cancel(self, id: int) -> None:
        try:
            with self.native.use() as b:
                library().tsk_batch_cancel(b, id)
        except TokenSkipError:
            pass  # closed, or another process's: nothing to cancel

    def stop(self) -> None:
        """Without waiting: a finalizer, which may run anywhere, must not."""
        self.stopping = True
        self.cancel(0)  # ends a wait
        self.native.close()

    def join(self) -> None:
        pump = self.pump
        if pump is not None and pump is not threading.current_thread() and pump.is_alive():
            pump.join()

    def close(self) -> None:
        self.stop()
        self.join()
        with self.lock:
            left, self.requests = list(self.requests.values()), {}
        for request in left:
            request._drop()


_cores: "weakref.WeakSet[_Core]" = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """No thread is inside the library when the interpreter goes."""
    for core in list(_cores):
        core.stop()
        core.join()


class Batch:
    """Requests of one model, many in each pass; from model.batch(). In f32 each gets the tokens it would get alone.

        with model.batch(max_requests=8) as batch:
            for result in batch.map(questions, gen_length=32):
                print(result.text)

    A thread of its own makes the passes; submit() and cancel() come from any thread. With background=False there is
    none: who waits for a result makes them, or step() does.
    """

    def __init__(self, model: Any, *, max_requests: int = 16, max_queued: Optional[int] = None,
                 cache_tokens: Optional[int] = None, max_rows: Optional[int] = None, row_layers: int = 0,
                 log: Optional[Callable[[str], Any]] = None, background: bool = True):
        """Not to be called: use model.batch().

        Args:
            max_requests: in flight at once; the others wait in order.
            max_queued: that may wait; submit() then raises QueueFullError. None: no bound.
            cache_tokens: canvas tokens that the cache holds in all. None: what max_requests may need, or as many as
                the device's memory takes.
            max_rows: rows of one pass. None: the library chooses.
            row_layers: rows times layers that refreshes may add to a pass; 0: no limit.
            log: called with remarks, a line each.
            background: False: no thread.
        """
        whole = _options._whole(0)
        options = library().tsk_batch_options_default()
        options.max_requests = whole("max_requests", max_requests)
        if max_queued is not None:
            options.max_queued = whole("max_queued", max_queued)
        if cache_tokens is not None:
            options.cache_tokens = whole("cache_tokens", cache_tokens)
        if max_rows is not None:
            options.max_rows = whole("max_rows", max_rows)
        options.row_layers = _options._whole(0, 2**63 - 1)("row_layers", row_layers)
        core = _Core(model)
        options.on_done = core.on_done
        keep = []
        if log is not None:
            keep.append(callback(_layout.tsk_batch_options_log, core.state,
                                 lambda line: log(line.decode("utf-8", "replace"))))  # type: ignore[misc]
            options.log = keep[0]
        pointer = ctypes.c_void_p()
        with model._native.use() as m:
            call("tsk_batch_create", m, ctypes.byref(options), ctypes.byref(pointer))
            # (after fork() its thread is gone, and its locks may be as the thread left them)
            core.native = Native("batch", pointer.value or 0, "tsk_batch_free", model._native, survives_fork=False)
        core.native.keep += keep
        self.model = model
        self._core = core
        self._background = background
        weakref.finalize(self, core.stop)
        _cores.add(core)
        core.state.raise_error()

    def submit(self, prompt: Any, *, system: Optional[str] = None, raw: bool = False,
               generated: Optional[Iterable[int]] = None, on_step: Optional[OnStep] = None,
               on_select: Optional[OnSelect] = None, cancel: Optional[Cancel] = None, **options: Any) -> Request:
        """Adds a request, and gives its Request at once. Arguments as Model.generate(); its callbacks are called from
        the thread that makes the passes. Any thread."""
        core = self._core
        struct = _options.build("submit", options, self.model.config.block_length > 0)
        array, ids = _arrays.ids(self.model._prompt(prompt, system, raw))
        fixed, listed = (None, None) if generated is None else _arrays.ids(generated)
        if listed is not None and len(listed) != struct.gen_length:
            raise ValueError(f"generated has {len(listed)} ids, and gen_length is {struct.gen_length}")
        request = Request(self, prompt)
        request._eos_stop = bool(struct.eos_stop)
        if on_step is not None or on_select is not None or cancel is not None:
            request._callbacks = Callbacks(request._state, self.model, struct, on_step, on_select, cancel)
        with core.native.use() as b:
            self._start()
            key = next(core.keys)
            with core.lock:
                core.requests[key] = request
            number = ctypes.c_uint64()
            try:
                call("tsk_batch_submit", b, array, len(ids), fixed, ctypes.byref(struct), key, ctypes.byref(number))
            except BaseException:
                with core.lock:
                    core.requests.pop(key, None)
                raise
            request.id = number.value
        return request

    def map(self, prompts: Iterable[Any], **options: Any) -> Iterator[Result]:
        """Submits every prompt with the same options; gives the results in the order of the prompts."""
        requests = [self.submit(prompt, **options) for prompt in prompts]
        return (request.result() for request in requests)

    def completed(self, requests: Optional[Iterable[Request]] = None) -> Iterator[Request]:
        """The requests as they end. None: all that are not over now."""
        if requests is None:
            with self._core.lock:
                requests = list(self._core.requests.values())
        if self._core.pump is not None:
            for request in concurrent.futures.as_completed(list(requests)):
                yield request  # type: ignore[misc]
            return
        left = list(requests)
        while left:
            for request in [r for r in left if r.done()]:
                left.remove(request)
                yield request
            if left and not any(r.done() for r in left):
                self.step()

    def __iter__(self) -> Iterator[Request]:
        return self.completed()

    def step(self) -> BatchStatus:
        """One forward pass over whatever has work; only in a batch with background=False."""
        if self._background:
            raise RuntimeError("this batch makes its passes on a thread of its own: use background=False to step it")
        self._core.native.check_open()
        return self._core.step()

    def drain(self) -> None:
        """Waits until every request so far is over, however it ends."""
        for _ in self.completed():
            pass

    def _start(self) -> None:
        core = self._core
        with core.lock:
            if self._background and core.pump is None:
                core.pump = threading.Thread(target=core.run, name="tokenskip batch", daemon=True)
                core.pump.start()

    @property
    def closed(self) -> bool:
        return bool(self._core.native.closed)

    def close(self) -> None:
        """Ends it after the pass under way. Requests that are not over are dropped: their result() raises
        concurrent.futures.CancelledError. Twice is fine."""
        self._core.close()

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()
