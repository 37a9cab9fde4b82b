"""Generation options: the keywords, which have the names of the command's options, and the C struct made from them."""

from __future__ import annotations

import difflib
import operator
from typing import Any, Callable, Dict, Mapping, Tuple

from . import _layout
from ._library import library

_AUTO = _layout.TSK_AUTO
_INT32_MAX = 2**31 - 1


def _whole(least: int, most: int = _INT32_MAX) -> Callable[[str, Any], int]:
    def convert(name: str, value: Any) -> int:
        if isinstance(value, bool):
            raise TypeError(f"{name} takes a whole number, not {value!r}")
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} takes a whole number, not {value!r}") from None
        if not least <= number <= most:
            raise ValueError(f"{name} takes a whole number from {least} to {most}, not {number}")
        return number

    return convert


def _real(least: float, most: float) -> Callable[[str, Any], float]:
    def convert(name: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} takes a number, not {value!r}") from None
        if isinstance(value, (bool, str)):
            raise TypeError(f"{name} takes a number, not {value!r}")
        if not least <= number <= most:
            raise ValueError(f"{name} takes a number from {least:g} to {most:g}, not {number!r}")
        return number

    return convert


def _switch(name: str, value: Any) -> int:
    if value not in (0, 1):
        raise TypeError(f"{name} takes True or False, not {value!r}")
    return int(value)


def _choice(**values: int) -> Callable[[str, Any], int]:
    names = {key.replace("_", "-") if key.startswith("last") else key: value for key, value in values.items()}

    def convert(name: str, value: Any) -> int:
        if not isinstance(value, str) or (value not in names and value.replace("_", "-") not in names):
            raise ValueError(f"{name} takes {', '.join(map(repr, names))}, not {value!r}")
        return names[value] if value in names else names[value.replace("_", "-")]

    return convert


def _end_of_turn(name: str, value: Any) -> int:
    return _layout.TSK_NONE if value == "none" else _AUTO if value == "auto" else _whole(0)(name, value)


def _enum(enum: str, name: str) -> int:
    return _layout.ENUMS[enum][name]


_FLOAT_MAX = 3.4028234e38
# The keyword, its field in tsk_generate_options, and what makes its value. None for a value means the default.
OPTIONS: Dict[str, Tuple[str, Callable[[str, Any], Any]]] = {
    "gen_length": ("gen_length", _whole(1)),
    "block_length": ("block_length", _whole(1)),
    "small_block": ("small_block", _whole(0)),
    "steps": ("steps", _whole(1)),
    "cache": ("cache", _choice(dual=_enum("tsk_cache", "TSK_CACHE_DUAL"), prefix=_enum("tsk_cache", "TSK_CACHE_PREFIX"),
                               none=_enum("tsk_cache", "TSK_CACHE_NONE"), block=_enum("tsk_cache", "TSK_CACHE_BLOCK"))),
    "prompt_rows": ("prompt_rows", _whole(1)),
    "threshold": ("threshold", _real(0, 1)),
    "factor": ("factor", _real(0, _FLOAT_MAX)),
    "frechet": ("frechet", _real(0, 1)),
    "entropy_bound": ("entropy_bound", _real(0, _FLOAT_MAX)),
    "local_leap": ("local_leap", _real(0, 1)),
    "local_radius": ("local_radius", _whole(0)),
    "temperature": ("temperature", _real(0, _FLOAT_MAX)),
    "seed": ("seed", _whole(0, 2**64 - 1)),
    "remasking": ("remasking", _choice(low_confidence=_enum("tsk_remasking", "TSK_REMASKING_LOW_CONFIDENCE"),
                                       random=_enum("tsk_remasking", "TSK_REMASKING_RANDOM"))),
    "eos_stop": ("eos_stop", _switch),
    "end_of_turn_id": ("end_of_turn_id", _end_of_turn),
    "skip_rule": ("skip.rule", _choice(auto=_enum("tsk_skip_rule", "TSK_SKIP_RULE_AUTO"),
                                       off=_enum("tsk_skip_rule", "TSK_SKIP_RULE_OFF"),
                                       states=_enum("tsk_skip_rule", "TSK_SKIP_RULE_STATES"),
                                       rows=_enum("tsk_skip_rule", "TSK_SKIP_RULE_ROWS"))),
    "rows_margin": ("skip.rows_margin", _whole(0)),
    "rows_ahead": ("skip.rows_ahead", _whole(0)),
    "skip_layer_k": ("skip.layer_k", _whole(0)),
    "skip_threshold": ("skip.threshold", _real(-1, 1)),
    "skip_outlier": ("skip.outlier", _real(-1, 1)),
    "skip_masked": ("skip.masked", _switch),
    "skip_policy": ("skip.policy", _choice(reuse=_enum("tsk_skip_policy", "TSK_SKIP_REUSE"),
                                           exit=_enum("tsk_skip_policy", "TSK_SKIP_EXIT"))),
    "skip_reference": ("skip.reference",
                       _choice(last_step=_enum("tsk_skip_reference", "TSK_SKIP_LAST_STEP"),
                               last_computed=_enum("tsk_skip_reference", "TSK_SKIP_LAST_COMPUTED"))),
    "skip_max_age": ("skip.max_age", _whole(0)),
    "skip_full_every": ("skip.full_every", _whole(0)),
    "skip_warm_start": ("skip.warm_start", _switch),
    "skip_refresh": ("skip.refresh", _switch),
    "refresh": ("refresh", _choice(auto=_enum("tsk_refresh", "TSK_REFRESH_AUTO"),
                                   full=_enum("tsk_refresh", "TSK_REFRESH_FULL"),
                                   near=_enum("tsk_refresh", "TSK_REFRESH_NEAR"))),
    "near": ("refresh_near", _whole(0)),
    "window": ("refresh_window", _whole(0)),
    "refresh_rows": ("refresh_rows", _whole(0)),
    "refresh_every": ("refresh_every", _whole(0)),
}
# Keywords that are no field of their own.
EXTRA = ("no_threshold", "skip_preset")

# As the command has them.
PRESETS: Dict[str, Dict[str, Any]] = {
    "default": {},
    "fast": {"skip_rule": "rows", "refresh": "near", "near": 32, "window": 32},
    "careful": {"skip_rule": "rows", "rows_ahead": 1, "refresh": "full"},
    "seed": {"skip_rule": "states", "skip_policy": "exit", "skip_masked": True, "skip_threshold": 0.95,
             "skip_outlier": 0.7, "skip_reference": "last-step"},
}

_OF_STATES = ("skip_layer_k", "skip_threshold", "skip_outlier", "skip_masked", "skip_policy", "skip_reference",
              "skip_max_age", "skip_warm_start")
_OF_ROWS = ("rows_margin", "rows_ahead")


def check_names(function: str, options: Mapping[str, Any]) -> None:
    """TypeError that names every keyword that is no option."""
    known = [*OPTIONS, *EXTRA]
    unknown = [name for name in options if name not in known]
    if not unknown:
        return
    close = difflib.get_close_matches(unknown[0], known, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else f" (options: {', '.join(known)})"
    raise TypeError(f"{function}() has no option {', '.join(map(repr, unknown))}{hint}")


# The transfer rule that each of these options means.
TRANSFERS = {"threshold": "TSK_TRANSFER_THRESHOLD", "no_threshold": "TSK_TRANSFER_SCHEDULE",
             "factor": "TSK_TRANSFER_FACTOR", "frechet": "TSK_TRANSFER_FRECHET",
             "entropy_bound": "TSK_TRANSFER_ENTROPY", "local_leap": "TSK_TRANSFER_LEAP"}


def _choose_transfer(o: Any, given: Dict[str, Any], options: Mapping[str, Any]) -> None:
    """The rule follows from which of its options is there."""
    there = [name for name in TRANSFERS if name in given or (name == "no_threshold" and options.get(name))]
    # threshold=None is the schedule, and beside another rule says nothing new
    if "threshold" in options and options["threshold"] is None and not there:
        there = ["no_threshold"]
    # LocalLeap's threshold belongs to it
    if "local_leap" in there and "threshold" in there:
        there.remove("threshold")
    if len(there) > 1:
        raise ValueError(f"only one of {' and '.join(there)} can be given")
    if "local_radius" in given and "local_leap" not in there:
        raise ValueError("local_radius needs local_leap")
    o.transfer = _enum("tsk_transfer", TRANSFERS[there[0] if there else "threshold"])


def _choose_rule(o: Any, given: Dict[str, Any]) -> None:
    """Without skip_rule, TokenSkip's rule is the one whose options are there."""
    if o.skip.rule != _enum("tsk_skip_rule", "TSK_SKIP_RULE_AUTO"):
        return
    # (a switch that is off says nothing)
    states = [name for name in _OF_STATES if name in given and given[name] is not False]
    rows = [name for name in _OF_ROWS if name in given]
    if states and rows:
        raise ValueError(f"{states[0]} is of rule states and {rows[0]} of rule rows: say skip_rule='states' or 'rows'")
    if rows:
        o.skip.rule = _enum("tsk_skip_rule", "TSK_SKIP_RULE_ROWS")
    elif states and o.skip.layer_k == _AUTO and o.cache in [
            _enum("tsk_cache", name) for name in ("TSK_CACHE_AUTO", "TSK_CACHE_DUAL", "TSK_CACHE_BLOCK")]:
        o.skip.rule = _enum("tsk_skip_rule", "TSK_SKIP_RULE_STATES")


def _choose_refresh(o: Any, given: Dict[str, Any]) -> None:
    near = _enum("tsk_refresh", "TSK_REFRESH_NEAR")
    if o.refresh == _enum("tsk_refresh", "TSK_REFRESH_AUTO") and ("near" in given or o.refresh_window > 0):
        o.refresh = near
    if "near" in given and o.refresh != near:
        raise ValueError("near works with refresh='near' only")


_OF_BLOCK_STARTS = ("refresh", "near", "window")
_USUAL_BLOCK = 32


def build(function: str, options: Mapping[str, Any], by_blocks: bool = False) -> _layout.tsk_generate_options:
    """The struct, for a model that attends by blocks or for one that does not. Unknown keywords are a TypeError, values
    out of range a ValueError; what only the model can tell, and what does not go together, the library refuses when a
    session or request is made of it."""
    check_names(function, options)
    preset = options.get("skip_preset")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"skip_preset takes {', '.join(map(repr, PRESETS))}, not {preset!r}")
    given = {name: value for name, value in options.items() if name in OPTIONS and value is not None}
    of_preset = {name: value for name, value in PRESETS[preset or "default"].items()
                 if not by_blocks or name not in _OF_BLOCK_STARTS}
    whole = {**of_preset, **given}
    o: _layout.tsk_generate_options = library().tsk_generate_options_default()
    for name, value in whole.items():
        path, convert = OPTIONS[name]
        target = o.skip if path.startswith("skip.") else o
        setattr(target, path.split(".")[-1], convert(name, value))
    if "block_length" not in given and not by_blocks:
        o.block_length = min(_USUAL_BLOCK, o.gen_length)
    _choose_transfer(o, given, options)
    _choose_rule(o, given)
    _choose_refresh(o, given)
    return o
