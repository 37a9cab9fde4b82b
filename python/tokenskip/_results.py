"""What a generation gives back: plain Python values, copied out of the library, that outlive everything."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from . import _arrays, _layout

FINISH = {0: "none", 1: "length", 2: "eos", 3: "cancelled"}


@dataclass(frozen=True)
class Block:
    """One block of a generation: forward passes (its first one included), and masks left (0 unless cancelled)."""

    nfe: int
    mask_residual: int


@dataclass(frozen=True)
class SkipCounts:
    """What TokenSkip left out.

    Attributes:
        active: rows of the block that ran all layers, for each block step in order (cache "dual").
        stable_masked: rows left out that were masked, likewise.
        token_layers_computed, token_layers_total: rows times layers of all block steps.
        refresh_token_layers_computed, refresh_token_layers_total: of the refreshes, where they leave something out.
    """

    active: List[int]
    stable_masked: List[int]
    token_layers_computed: int
    token_layers_total: int
    refresh_token_layers_computed: int
    refresh_token_layers_total: int


@dataclass(frozen=True)
class Timing:
    """Wall-clock time in milliseconds, and what it was spent on.

    Attributes:
        load_ms: of loading the model.
        refresh_ms, refreshes: passes over the canvas (or near a block), and how many.
        block_step_ms, block_steps: a block's steps.
        prompt_ms, storing_ms: pieces of the prompt and storing passes (cache "block").
        refreshed_rows: rows that refresh_rows added.
        total_ms: all passes of the generation.
        tokens_per_second: generated tokens up to the end of the text, by total_ms.
    """

    load_ms: float
    refresh_ms: float
    refreshes: int
    refreshed_rows: int
    block_step_ms: float
    block_steps: int
    prompt_ms: float
    storing_ms: float
    total_ms: float
    tokens_per_second: float


@dataclass(frozen=True)
class Result:
    """A generation's result.

    Attributes:
        text: up to the end of the text, without special tokens; None where the model has no tokenizer.
        tokens: ids up to the end of the text, the token that ends it excluded; with eos_stop=False all of them.
        all_tokens: ids of all gen_length positions; after an early stop the rest is the end-of-sequence id.
        prompt_tokens: ids of the prompt, masks in it filled.
        nfe: forward passes, each counted once whatever its size.
        prompt_passes, storing_passes: of them, pieces of the prompt and storing passes (cache "block").
        mask_residual: masks left; 0 unless cancelled.
        finish_reason: "length", "eos" or "cancelled"; "none" while a session has not finished.
        blocks: the blocks reached.
        skip: what TokenSkip left out.
        timing: milliseconds.
        rows: rows that ran all layers, in all passes.
        device: where it ran: "CPU, AVX-512, 2 threads".
    """

    text: Optional[str]
    tokens: List[int]
    all_tokens: List[int]
    prompt_tokens: List[int]
    nfe: int
    prompt_passes: int
    storing_passes: int
    mask_residual: int
    finish_reason: str
    blocks: List[Block]
    skip: SkipCounts
    timing: Timing
    rows: int
    device: str

    def to_dict(self) -> Dict[str, Any]:
        """The object that `tokenskip generate --json` prints."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "nfe": self.nfe,
            "prompt_passes": self.prompt_passes,
            "storing_passes": self.storing_passes,
            "mask_residual": self.mask_residual,
            "finish_reason": self.finish_reason,
            "blocks": [dict(vars(block)) for block in self.blocks],
            "skip": dict(vars(self.skip)),
            "timing": dict(vars(self.timing)),
            "device": self.device,
        }

    def __str__(self) -> str:
        return self.text if self.text is not None else repr(self.tokens)


@dataclass(frozen=True)
class Step:
    """One forward pass and what it committed. Lists run over the positions of the block.

    Attributes:
        pass_: number of the pass in the generation, from 0.
        block, block_step: number of the block (an infilling block comes first) and of the pass in it, from 0.
        is_refresh: a pass over the canvas, or one that refresh="near" makes.
        is_prompt, is_storing: a piece of the prompt; the pass that ends a block (cache "block"). All three False: a
            block step.
        positions: of the block, in the canvas (prompt and generated part).
        masked: whether each was masked before the pass.
        predictions: the id that each masked position would get; its token where it was not masked.
        confidences: of the predictions, 0 to 1; 1.0 where it was not masked.
        entropies: of the predictions' distributions, in nats; 0.0 where it was not masked.
        committed: positions (in the canvas) that this pass committed.
        active: whether each ran: False where it skipped the upper layers (rule states) or all (rule rows).
        n_active, n_stable_masked: how many ran; how many were left out though masked.
        n_rows: rows that ran all layers, of the block or not.
        cosines: float32 [len(positions), K - 1] of the states h_1 .. h_{K-1} with the reference, where this pass
            compared them; else None.
        masks_left: in the block.
        canvas: ids of the whole canvas after the commit, the mask's id where still masked.
        tokens: generated ids that are final: before the first mask and the end of the text.
        text: their text, which only grows from step to step; None where the model has no tokenizer.
        new_text: what this pass added to it.
    """

    pass_: int
    block: int
    block_step: int
    is_refresh: bool
    is_prompt: bool
    is_storing: bool
    positions: List[int]
    masked: List[bool]
    predictions: List[int]
    confidences: List[float]
    entropies: List[float]
    committed: List[int]
    active: List[bool]
    n_active: int
    n_stable_masked: int
    n_rows: int
    cosines: Any
    masks_left: int
    canvas: List[int]
    tokens: List[int]
    text: Optional[str]
    new_text: str


@dataclass(frozen=True)
class Probe:
    """A pass that committed nothing.

    Attributes:
        positions: of the current block, in the canvas.
        active: whether each ran.
        cosines: float32 [len(positions), K - 1], or None where the pass compared no states.
    """

    positions: List[int]
    active: List[bool]
    cosines: Any


@dataclass(frozen=True)
class Candidate:
    """What a masked position would get.

    Attributes:
        position: in the canvas.
        id: the predicted token.
        confidence: of it, as `remasking` has it.
        entropy: of the softmax of its position's logits, without noise, in nats.
    """

    position: int
    id: int
    confidence: float
    entropy: float


@dataclass(frozen=True)
class Selection:
    """What a decoding rule of your own (on_select) decides about.

    Attributes:
        pass_, block, block_step: as in Step.
        quota: how many LLaDA's schedule would commit in this step.
        candidates: the masked positions of the block, one at least, in order of position.
    """

    pass_: int
    block: int
    block_step: int
    quota: int
    candidates: List[Candidate]


@dataclass(frozen=True)
class DeviceInfo:
    """A device that a model can be loaded to.

    Attributes:
        device: what Model.load takes: "cpu", "cuda:0".
        name: "CPU, AVX-512, 8 processors"; "" where there is none.
        memory_total, memory_free: bytes; 0: not known.
        unusable: why it cannot be used, "" where it can.
    """

    device: str
    name: str
    memory_total: int
    memory_free: int
    unusable: str


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model and its special ids, as config.json has them."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    mlp_hidden_size: int
    vocab_size: int
    embedding_size: int
    max_sequence_length: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    eos_token_ids: List[int]
    rope_theta: float
    rms_norm_eps: float
    weight_tying: bool
    qkv_bias: bool
    linear_bias: bool
    block_length: int


def config_of(c: _layout.tsk_model_config) -> ModelConfig:
    values = {name: getattr(c, name) for name in ModelConfig.__dataclass_fields__}
    values["eos_token_ids"] = list(c.eos_token_ids[: c.n_eos_token_ids]) or [c.eos_token_id]
    for name in ("weight_tying", "qkv_bias", "linear_bias"):
        values[name] = bool(values[name])
    return ModelConfig(**values)


def cosines_of(pointer: Any, rows: int, count: int) -> Any:
    return _arrays.copied("f", pointer, (rows, count)) if count and pointer else None


def probe_of(p: _layout.tsk_probe) -> Probe:
    return Probe(p.positions[: p.n_positions], [bool(a) for a in p.active[: p.n_positions]],
                 cosines_of(p.cosines, p.n_positions, p.n_cosines))


def step_of(s: _layout.tsk_step, text: Optional[str], before: str) -> Step:
    n = s.n_positions
    positions, canvas = s.positions[:n], s.canvas[: s.canvas_length]
    commits = s.committed[:n]
    committed = [p for p, c in zip(positions, commits) if c]
    return Step(
        pass_=getattr(s, "pass"), block=s.block, block_step=s.block_step, is_refresh=bool(s.is_refresh),
        is_prompt=bool(s.is_prompt), is_storing=bool(s.is_storing),
        positions=positions,
        masked=[bool(c) or canvas[p] == s.mask_token_id for p, c in zip(positions, commits)],
        predictions=s.predictions[:n], confidences=s.confidences[:n], entropies=s.entropies[:n],
        committed=committed,
        active=[bool(a) for a in s.active[:n]], n_active=s.n_active, n_stable_masked=s.n_stable_masked,
        n_rows=s.n_rows, cosines=cosines_of(s.cosines, n, s.n_cosines), masks_left=s.masks_left, canvas=canvas,
        tokens=canvas[s.prompt_length : s.prompt_length + s.n_final],
        text=text, new_text=text[len(before) :] if text is not None else "",
    )


def selection_of(s: _layout.tsk_selection) -> Selection:
    candidates = [Candidate(c.position, c.id, c.confidence, c.entropy) for c in s.candidates[: s.n]]
    return Selection(getattr(s, "pass"), s.block, s.block_step, s.quota, candidates)


def result_of(r: _layout.tsk_result, model: Any, eos_stop: bool) -> Result:
    """Copies a tsk_result. `model`: what knows the tokenizer, the mask's id, the device and the time of loading."""
    tokens = r.tokens[: r.n_tokens] if r.n_tokens else []
    before_end = tokens[: r.n_before_end]
    count = sum(t != model.config.mask_token_id for t in before_end)
    return Result(
        text=model.tokenizer.decode(before_end) if model.tokenizer is not None else None,
        tokens=before_end if eos_stop else tokens,
        all_tokens=tokens,
        prompt_tokens=r.canvas[: r.n_prompt] if r.n_prompt else [],
        nfe=r.nfe,
        prompt_passes=r.prompt_passes,
        storing_passes=r.storing_passes,
        mask_residual=r.mask_residual,
        finish_reason=FINISH.get(r.finish_reason, "none"),
        blocks=[Block(b.nfe, b.mask_residual) for b in r.blocks[: r.n_blocks]] if r.n_blocks else [],
        skip=SkipCounts(
            r.active[: r.n_block_steps] if r.n_block_steps else [],
            r.stable_masked[: r.n_block_steps] if r.n_block_steps else [],
            r.token_layers_computed, r.token_layers_total,
            r.refresh_token_layers_computed, r.refresh_token_layers_total,
        ),
        timing=Timing(model.load_ms, r.refresh_ms, r.refreshes, r.refreshed_rows, r.block_step_ms, r.block_steps,
                      r.prompt_ms, r.storing_ms, r.total_ms, count * 1e3 / r.total_ms if r.total_ms > 0 else 0.0),
        rows=r.rows,
        device=model.device_name,
    )


def select(candidates: List[Candidate], transfer: str = "threshold", threshold: float = 0.9, factor: float = 1.0,
           quota: int = 1, frechet: float = 0.25, entropy_bound: float = 0.1, local_leap: float = 0.75,
           local_radius: int = 4) -> List[Candidate]:
    """The library's own rules, for a rule of your own to build on: those of `candidates` that the rule commits.

    Args:
        candidates: as in Selection. Of equal confidences the first is the better.
        transfer: "threshold": those at least `threshold` confident; "factor": Fast-dLLM's dynamic rule with `factor`;
            "frechet", "entropy_bound": Fast-dLLM++'s and EB-Sampler's rule with the argument of that name;
            "local_leap": LocalLeap's, with `threshold`, `local_leap` and `local_radius`; "schedule": `quota` of them.
            The best one always is committed.
    """
    from ._library import library

    rules = {"threshold": "TSK_TRANSFER_THRESHOLD", "factor": "TSK_TRANSFER_FACTOR",
             "frechet": "TSK_TRANSFER_FRECHET", "entropy_bound": "TSK_TRANSFER_ENTROPY",
             "local_leap": "TSK_TRANSFER_LEAP", "schedule": "TSK_TRANSFER_SCHEDULE"}
    if transfer not in rules:
        raise ValueError(f"transfer takes {', '.join(map(repr, rules))}, not {transfer!r}")
    rule = _layout.tsk_transfer_rule(_layout.ENUMS["tsk_transfer"][rules[transfer]], threshold, factor, frechet,
                                     entropy_bound, local_leap, local_radius, quota)
    n = len(candidates)
    given = (_layout.tsk_candidate * max(n, 1))(
        *(_layout.tsk_candidate(c.position, c.id, c.confidence, c.entropy) for c in candidates))
    commit = (ctypes.c_uint8 * max(n, 1))()
    library().tsk_select(ctypes.byref(rule), n, given, commit)
    return [c for c, chosen in zip(candidates, commit) if chosen]
