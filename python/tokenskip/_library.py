"""Finding libtokenskip.so, and calling it."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import glob
import os
import sys
import threading
from typing import Any, Callable, Iterator, List, Optional, Tuple

from . import _layout
from ._errors import ClosedError, DeviceError, LibraryError, from_struct

VARIABLE = "TOKENSKIP_LIBRARY"
VERSION = (_layout.TOKENSKIP_VERSION_MAJOR, _layout.TOKENSKIP_VERSION_MINOR, _layout.TOKENSKIP_VERSION_PATCH)

_library: Optional[ctypes.CDLL] = None
_loading = threading.Lock()


def _candidates() -> Iterator[str]:
    """Where the library may be, best first: beside this package, then where the system looks."""
    here = os.path.dirname(os.path.abspath(__file__))
    major, minor = VERSION[:2]
    names = ["libtokenskip.so", f"libtokenskip.so.{major}.{minor}", f"libtokenskip.so.{major}"]
    for folder in (here, os.path.dirname(here)):
        yield from (os.path.join(folder, name) for name in names)
        yield from sorted(set(glob.glob(os.path.join(glob.escape(folder), "libtokenskip.so.*")))
                          - {os.path.join(folder, name) for name in names})
    found = ctypes.util.find_library("tokenskip")
    if found:
        yield found
    yield from names
    for folder in (os.path.join(sys.prefix, "lib"), "/usr/local/lib"):
        yield from (os.path.join(folder, name) for name in names)


def _fits(library: ctypes.CDLL) -> Optional[str]:
    """None, or why this library is not the one that _layout.py describes."""
    try:
        library.tsk_version.restype = ctypes.c_int32
        number = library.tsk_version()
    except AttributeError:
        return "it is not TokenSkip's library: it has no tsk_version"
    found = (number // 10000, number // 100 % 100, number % 100)
    if found != VERSION:
        return "it has version {}.{}.{}, and this package needs {}.{}.{}".format(*found, *VERSION)
    missing = [name for name in _layout.FUNCTIONS if not hasattr(library, name)]
    if missing:
        return f"it has no {missing[0]}: it was built from another state of version {'.'.join(map(str, VERSION))}"
    return None


def _open(path: str) -> Tuple[Optional[ctypes.CDLL], str]:
    """The library, or None and why not."""
    if os.path.sep in path and not os.path.exists(path):
        return None, "there is no such file"
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        return None, str(error)
    return library, _fits(library) or ""


def _find() -> ctypes.CDLL:
    given = os.environ.get(VARIABLE)
    tried: List[str] = []
    seen = set()
    for path in [given] if given else _candidates():
        if path in seen:
            continue
        seen.add(path)
        library, reason = _open(path)
        if library is not None and not reason:
            return library
        tried.append(f"  {path}: {reason}")
        if library is not None:
            break  # a library that is there but does not fit is the answer, not a reason to go on and find an older one
    what = f"what {VARIABLE} names" if given else "libtokenskip.so"
    raise LibraryError(
        f"{what} cannot be used. Tried:\n" + "\n".join(tried) + "\n"
        f"Build it in the repository's folder (make python), install it, or let {VARIABLE} be its path."
    )


def library() -> ctypes.CDLL:
    """The C library, found and checked at the first call. Raises LibraryError."""
    global _library
    if _library is not None:  # (without the lock: a finalizer may come here from anywhere)
        return _library
    with _loading:
        if _library is None:
            found = _find()
            for name, (result, *parameters) in _layout.FUNCTIONS.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, parameters
            _library = found
    return _library


def library_path() -> str:
    """The path or name under which the C library was loaded. Raises LibraryError where there is none."""
    return library()._name


# ---- Calls ----------------------------------------------------------------------------------------------------------


class State:
    """What the callbacks of one object share with those who call the library: whether to go on, and what went wrong.

    A callback must not raise into C. It leaves its exception here, asks for the end, and whoever made the call raises
    it once the library has returned.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.error: Optional[BaseException] = None

    def fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.cancelled = True

    def raise_error(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


def callback(kind: Any, state: State, function: Callable[..., Any], failed: Any = None) -> Any:
    """A C callback that runs function(argument, ...) without the `user` pointer. What it raises goes to `state`."""

    def run(user: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException as error:  # also KeyboardInterrupt
            state.fail(error)
            return failed

    return kind(run)


@contextlib.contextmanager
def interruptible(state: State) -> Iterator[None]:
    """For calls that may run callbacks. Python raises KeyboardInterrupt at the next bytecode of the main thread, which
    is the first of a callback's: before its `try`. ctypes then reports it as unraisable; here it goes to `state`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            state.fail(unraisable.exc_value or KeyboardInterrupt())
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


def call(name: str, *arguments: Any) -> None:
    """Calls a function whose last parameter is a tsk_error. Raises what it says."""
    error = _layout.tsk_error()
    status = getattr(library(), name)(*arguments, ctypes.byref(error))
    if status:
        raise from_struct(error)


def call_with(state: State, name: str, *arguments: Any) -> None:
    """The same where callbacks may run: an exception of theirs comes before the library's own error."""
    error = _layout.tsk_error()
    with interruptible(state):
        status = getattr(library(), name)(*arguments, ctypes.byref(error))
    state.raise_error()
    if status:
        raise from_struct(error)


# ---- Lifetimes ------------------------------------------------------------------------------------------------------

_counting = threading.RLock()  # (reentrant: a finalizer may run anywhere)


def _renew_lock() -> None:
    global _counting
    _counting = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class Native:
    """A C object and how many have to do with it: its owner, those inside a call, the objects made from it. The last
    one frees it, so that no order of close(), garbage collection and exit frees something in use."""

    def __init__(self, what: str, pointer: int, free: str, parent: Optional["Native"] = None,
                 survives_fork: bool = True):
        self.what = what
        self.survives_fork = survives_fork
        self._pointer: Optional[int] = pointer
        self._free = free
        self._count = 1
        self._closed = False
        self._parent = parent
        self._process = os.getpid()
        self.keep: List[Any] = []  # what has to live as long
        if parent is not None:
            parent.retain()

    def retain(self) -> int:
        """The pointer, valid until release(). Also of a closed object, while something made from it keeps it."""
        with _counting:
            if self._pointer is None:
                raise ClosedError(f"this {self.what} is closed")
            if not self.survives_fork and os.getpid() != self._process:
                raise DeviceError(f"this {self.what} was made before fork(): here it cannot be used. Load it again")
            self._count += 1
            return self._pointer

    def release(self) -> None:
        with _counting:
            self._count -= 1
            if self._count or self._pointer is None:
                return
            pointer, self._pointer = self._pointer, None
        if self.survives_fork or os.getpid() == self._process:
            getattr(library(), self._free)(pointer)
        if self._parent is not None:
            self._parent.release()
        self.keep.clear()

    def close(self) -> None:
        """The owner's end. Once, however often it is called."""
        with _counting:
            if self._closed:
                return
            self._closed = True
        self.release()

    @property
    def closed(self) -> bool:
        return self._closed

    def check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"this {self.what} is closed")

    @contextlib.contextmanager
    def use(self) -> Iterator[int]:
        """The pointer, which stays valid inside the `with`. Raises ClosedError."""
        self.check_open()
        with self.inside() as pointer:
            yield pointer

    @contextlib.contextmanager
    def inside(self) -> Iterator[int]:
        """The same for what was made from it, which may outlive its close()."""
        pointer = self.retain()
        try:
            yield pointer
        finally:
            self.release()
