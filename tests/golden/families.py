#!/usr/bin/env python3
"""The other families in plain NumPy: Qwen3 (SDAR, TraDo) and Qwen2.5 (Fast-dLLM v2, Dream).

    python3 tests/golden/families.py            writes the models and the goldens beside this file
    python3 tests/golden/families.py --check    derives them again and compares with what is committed

Needs NumPy (Debian: python3-numpy). It shares draws, selection and file formats with reference.py, whose conventions
hold here, too, and no code with the library: everything is computed in float64, by other ways. By blocks the K and V of
finished blocks are never kept: each block starts with a pass over everything before it, under the block-causal mask.

Conventions of Dream, whose tokens see all others
-------------------------------------------------
Caches, blocks, schedule and TokenSkip are reference.py's, but that row i predicts position i + 1, and row 0 position 0
as well. A block step (dual) and the suffix (prefix) also run the row before a masked position of the block where that is
no row of theirs: before the block's first position, while it is masked; of an infilling block before any. It runs all
layers, has no states, and counts neither as active nor in token layers. Under the rule `rows` only the rows run that
predict a chosen position. A row that predicts a mask is never stable, unless skip_masked.

Conventions of attention by blocks
----------------------------------
Attention      Positions are counted from 0 in blocks of block_length. A token attends to its own block and to all
               before it.
Canvas         Prompt and gen_length masks, rounded up to whole blocks with further masks. What comes out is cut.
Passes         The prompt's whole blocks first, in pieces of at most prompt_rows rows, whole blocks each (0: in one
               piece); their K and V are final. Then the blocks that hold a position beyond these, in order: steps while
               the block holds a mask, all of its positions, the prompt's rest among them; then one storing pass, unless
               no mask is left behind the block, or the block ends the generation. A block that holds no mask has a
               storing pass only. Nothing runs where no position is masked.
Masks in the prompt  Only in its rest, behind the whole blocks: they are masks of the first block like any others.
Schedule       Without `steps` a block has block_length steps; with it steps / (number of blocks), rounded down, at
               least 1.
End            A block that holds, among the gen_length positions behind the prompt, an end-of-sequence token.
Shift          Row i predicts position i + 1. A block's first position is predicted by the last row of the pass that
               made the block before it final, and is the argmax there, whatever options say. Position 0 is predicted
               by row 0.
Draws          n, the number of a pass, does not count pieces of the prompt: how it is cut changes no draw.
small_block    n: candidates are only the masks of the first n positions of the block, counted in stretches of n, that
               hold one.
TokenSkip      As in a dual cache's block, whose first block step is the block's first pass. With shifted logits a row
               that predicts a mask is never stable either, unless skip_masked; a stable row's last output predicts.
               The rule `rows` runs the rows that predict the masked positions that it chooses.
Storing passes and prompt passes run every row, and are no block steps.

Files
-----
models/sdar-*, models/fast-dllm-*, models/dream-*       random models without a tokenizer
forward_families.json    hidden states and logits of whole passes under explicit masks (see below)
generate_dream.json      generations of Dream, as in generate_rule_rows.json
generate_block.json      generations. `kinds` names each pass: prompt, step or store; `committed` and `confidence` are
                         what it commits, `rows` (under the rule of that name) its positions in order, `n_rows` how
                         many; `blocks` count steps and storing passes
"""

import json
import os
import struct
import sys

import reference
from reference import (MIN_MARGIN, PROMPT, WEIGHTS, Margin, draw, get_num_transfer_tokens, get_transfer_index,
                       looks_stable, np, predict, random_confidence, rounded, rows_golden, silu, softmax, stored,
                       uniform)

HERE = os.path.dirname(os.path.abspath(__file__))
MADE_BY = "python3 tests/golden/families.py"

# ---------------------------------------------------------------------------------------------------------------------
# Models: tiny, random, in the folder layout of Hugging Face

QWEN3 = dict(architectures=["SDARForCausalLM"], model_type="sdar", attention_bias=False, hidden_act="silu",
             rope_scaling=None, use_sliding_window=False, attention_dropout=0.0, initializer_range=0.02,
             torch_dtype="bfloat16", use_cache=True)
FAST = dict(architectures=["Fast_dLLM_QwenForCausalLM"], model_type="Fast_dLLM_Qwen", hidden_act="silu",
            rope_scaling=None, use_sliding_window=False, attention_dropout=0.0, torch_dtype="bfloat16")

MODELS = {
    # head_dim is not hidden_size / num_attention_heads, as in SDAR-4B
    "sdar-bf16": dict(seed=44, dtype="BF16", shards=2, shift=False, norms=True, biases=False, generation=[70, 71],
                      config=dict(QWEN3, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
                                  num_key_value_heads=2, head_dim=12, intermediate_size=48, vocab_size=73,
                                  tie_word_embeddings=False, rope_theta=1000000, rms_norm_eps=1e-06, block_size=4,
                                  max_position_embeddings=256, mask_token_id=72, bos_token_id=70, eos_token_id=70)),
    "sdar-tied-f32": dict(seed=55, dtype="F32", shards=1, shift=False, norms=True, biases=False, generation=None,
                          config=dict(QWEN3, hidden_size=40, num_hidden_layers=5, num_attention_heads=6,
                                      num_key_value_heads=2, head_dim=8, intermediate_size=44, vocab_size=66,
                                      tie_word_embeddings=True, rope_theta=10000.0, rms_norm_eps=1e-05, block_size=8,
                                      max_position_embeddings=256, mask_token_id=64, eos_token_id=[1, 2])),
    "fast-dllm-bf16": dict(seed=66, dtype="BF16", shards=1, shift=True, norms=False, biases=True, generation=None,
                           config=dict(FAST, hidden_size=48, num_hidden_layers=4, num_attention_heads=4,
                                       num_key_value_heads=2, intermediate_size=40, vocab_size=68,
                                       tie_word_embeddings=True, rope_theta=1000000.0, rms_norm_eps=1e-06, bd_size=8,
                                       layer_types=["full_attention"] * 4, max_position_embeddings=256,
                                       mask_token_id=66, eos_token_id=3, pad_token_id=2)),
    "fast-dllm-f16": dict(seed=77, dtype="F16", shards=1, shift=True, norms=False, biases=True, generation=None,
                          config=dict(FAST, hidden_size=40, num_hidden_layers=5, num_attention_heads=4,
                                      num_key_value_heads=4, intermediate_size=44, vocab_size=70,
                                      tie_word_embeddings=False, rope_theta=10000.0, rms_norm_eps=1e-06, bd_size=12,
                                      layer_types=["full_attention"] * 5, max_position_embeddings=256,
                                      mask_token_id=68, eos_token_id=5)),
}

DREAM = {
    "dream-f32": dict(seed=88, dtype="F32", shards=1, shift=True, norms=False, biases=True, generation=[3, 65],
                      config=dict(FAST, architectures=["DreamModel"], model_type="Dream", hidden_size=48,
                                  num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=2,
                                  intermediate_size=40, vocab_size=69, tie_word_embeddings=False, rope_theta=1000000.0,
                                  rms_norm_eps=1e-06, max_position_embeddings=256, mask_token_id=66, eos_token_id=3,
                                  pad_token_id=3, bos_token_id=3, max_window_layers=5, sliding_window=None)),
    "dream-bf16": dict(seed=99, dtype="BF16", shards=3, shift=True, norms=False, biases=True, generation=None,
                       config=dict(FAST, architectures=["DreamModel"], model_type="Dream", hidden_size=32,
                                   num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
                                   intermediate_size=44, vocab_size=67, tie_word_embeddings=False, rope_theta=10000.0,
                                   rms_norm_eps=1e-06, max_position_embeddings=256, mask_token_id=64, eos_token_id=2)),
}


def tensor_shapes(spec):
    """(name, shape, scale) of every tensor."""
    c = spec["config"]
    d, mlp, hd = c["hidden_size"], c["intermediate_size"], head_dim(c)
    q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
    head = 4.0 / d**0.5
    yield "model.embed_tokens.weight", (c["vocab_size"], d), head if c["tie_word_embeddings"] else 1.0
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (d,), 0.2
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            yield layer + f"self_attn.{name}_proj.weight", (width, d), 1.6 / d**0.5
            if spec["biases"]:
                yield layer + f"self_attn.{name}_proj.bias", (width,), 0.5
        if spec["norms"]:
            yield layer + "self_attn.q_norm.weight", (hd,), 0.4
            yield layer + "self_attn.k_norm.weight", (hd,), 0.4
        yield layer + "self_attn.o_proj.weight", (d, q), 1.0 / q**0.5
        yield layer + "post_attention_layernorm.weight", (d,), 0.2
        yield layer + "mlp.gate_proj.weight", (mlp, d), 1.2 / d**0.5
        yield layer + "mlp.up_proj.weight", (mlp, d), 1.2 / d**0.5
        yield layer + "mlp.down_proj.weight", (d, mlp), 1.2 / mlp**0.5
    yield "model.norm.weight", (d,), 0.2
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], d), head


def head_dim(config):
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def make_tensors(spec):
    """name -> (shape, bytes, float64 values). Uniform draws: exact arithmetic, the same on every machine."""
    tensors = {}
    for index, (name, shape, scale) in enumerate(tensor_shapes(spec)):
        u = uniform(draw(spec["seed"], int(np.prod(shape)), index, 0, WEIGHTS)).reshape(shape)
        values = (u - 0.5) * (12**0.5 * scale) + (1.0 if name.endswith("norm.weight") else 0.0)
        data, exact = stored(values, spec["dtype"])
        tensors[name] = (shape, data, exact)
    return tensors


def model_files(spec, tensors):
    """path -> bytes of one model folder."""
    files = {"config.json": (json.dumps(spec["config"], indent=2) + "\n").encode()}
    if spec["generation"]:
        files["generation_config.json"] = (json.dumps({"eos_token_id": spec["generation"]}) + "\n").encode()
    names, n = sorted(tensors), spec["shards"]
    if n == 1:
        files["model.safetensors"] = reference.safetensors_bytes(tensors, names, spec["dtype"])
        return files
    where = {name: f"model-{index % n + 1:05d}-of-{n:05d}.safetensors" for index, name in enumerate(names)}
    for shard in sorted(set(where.values())):
        own = [name for name in names if where[name] == shard]
        files[shard] = reference.safetensors_bytes(tensors, own, spec["dtype"])
    index = {"metadata": {"total_size": sum(len(data) for _, data, _ in tensors.values())}, "weight_map": where}
    files["model.safetensors.index.json"] = (json.dumps(index, indent=2) + "\n").encode()
    return files


class Model:
    def __init__(self, spec, tensors):
        c = spec["config"]
        self.config, self.weight = c, {name: values for name, (_, _, values) in tensors.items()}
        self.shift, self.n_layers, self.head_dim = spec["shift"], c["num_hidden_layers"], head_dim(c)
        self.n_heads, self.n_kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.block = c.get("block_size", c.get("bd_size"))
        self.mask_id, self.vocabulary = c["mask_token_id"], c["vocab_size"]
        eos = c["eos_token_id"]
        self.eos_ids = list(dict.fromkeys((eos if isinstance(eos, list) else [eos]) + (spec["generation"] or [])))

    def linear(self, name, x):
        y = x @ self.weight[name + ".weight"].T
        return y + self.weight[name + ".bias"] if name + ".bias" in self.weight else y

    def norm(self, name, x):
        """Over the last axis; x as it is where there is no such norm."""
        if name + ".weight" not in self.weight:
            return x
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.config["rms_norm_eps"]) * self.weight[name + ".weight"]

    def rope(self, x, positions):
        """x: [tokens, heads, head_dim]; pairs (i, i + head_dim/2), as a rotation of complex numbers."""
        half = self.head_dim // 2
        frequency = float(self.config["rope_theta"]) ** (-np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.outer(positions, frequency))[:, None, :]
        return np.concatenate([turned.real, turned.imag], axis=-1)


# ---------------------------------------------------------------------------------------------------------------------
# The transformer, over rows that attend to what a mask allows

class Store:
    """K (after the norm and RoPE) and V of every layer: [layers, length, kv heads, head_dim]."""

    def __init__(self, model, length):
        shape = (model.n_layers, length, model.n_kv_heads, model.head_dim)
        self.k, self.v = np.zeros(shape), np.zeros(shape)


def layer(model, i, store, x, positions, allowed):
    """Rows at `positions` replace their K and V, then attend to the positions that `allowed` [rows, length] says."""
    name, rows = f"model.layers.{i}.", len(positions)
    normed = model.norm(name + "input_layernorm", x)
    q, k, v = (model.linear(name + f"self_attn.{part}_proj", normed).reshape(rows, -1, model.head_dim)
               for part in "qkv")
    q = model.rope(model.norm(name + "self_attn.q_norm", q), positions)
    store.k[i][positions] = model.rope(model.norm(name + "self_attn.k_norm", k), positions)
    store.v[i][positions] = v
    group = model.n_heads // model.n_kv_heads
    keys, values = (np.repeat(t[i], group, axis=1) for t in (store.k, store.v))
    scores = np.einsum("rhd,khd->hrk", q, keys) / np.sqrt(model.head_dim)
    weights = softmax(np.where(allowed[None], scores, -np.inf))
    x = x + model.linear(name + "self_attn.o_proj", np.einsum("hrk,khd->rhd", weights, values).reshape(rows, -1))
    normed = model.norm(name + "post_attention_layernorm", x)
    gate, up = model.linear(name + "mlp.gate_proj", normed), model.linear(name + "mlp.up_proj", normed)
    return x + model.linear(name + "mlp.down_proj", silu(gate) * up)


def layers(model, which, store, x, positions, allowed):
    """The hidden states after each of the layers `which`."""
    states = []
    for i in which:
        x = layer(model, i, store, x, positions, allowed)
        states.append(x)
    return states


def embed(model, ids):
    return model.weight["model.embed_tokens.weight"][ids]


def head(model, x):
    normed = model.norm("model.norm", x)
    return model.linear("model.embed_tokens" if model.config["tie_word_embeddings"] else "lm_head", normed)


def block_causal(positions, length, block):
    """[rows, length]: which positions each row attends to."""
    return np.asarray(positions)[:, None] // block >= np.arange(length)[None, :] // block


def whole_pass(model, ids, block, store=None):
    """All tokens at once, from nothing: h_0 .. h_L."""
    everything = np.arange(len(ids))
    x = embed(model, ids)
    store = store or Store(model, len(ids))
    return [x] + layers(model, range(model.n_layers), store, x, everything, block_causal(everything, len(ids), block))


# ---------------------------------------------------------------------------------------------------------------------
# Generation by blocks

DEFAULTS = dict(gen_length=16, block_length=None, steps=None, small_block=0, prompt_rows=0, threshold=None, factor=None,
                temperature=0.0, seed=0, remasking="low_confidence", eos_stop=True, skip_rule="off", rows_margin=4,
                rows_ahead=0, skip_layer_k=0, skip_threshold=0.95, skip_outlier=0.7, skip_policy="reuse",
                skip_masked=False, skip_reference="last-step", skip_max_age=0, skip_full_every=0)


class Generation:
    def __init__(self, model, canvas, prompt_length, options):
        self.model, self.options, self.prompt_length = model, options, prompt_length
        self.block_length = options["block_length"] or model.block
        self.asked = len(canvas)
        self.canvas = np.array(list(canvas) + [model.mask_id] * (-len(canvas) % self.block_length))
        self.whole = prompt_length // self.block_length * self.block_length  # of the prompt, in whole blocks
        assert model.mask_id not in self.canvas[:self.whole]
        self.margin = Margin()
        self.kinds, self.rows, self.committed, self.confidences = [], [], [], []
        self.blocks, self.active, self.stable_masked, self.computed, self.total = [], [], [], 0, 0
        k = options["skip_layer_k"] if options["skip_rule"] == "states" else 0
        self.lower = k if 2 <= k < model.n_layers else model.n_layers
        self.may_skip = self.lower < model.n_layers

    # -- passes

    def note(self, kind, rows, committed=(), confidence=()):
        self.kinds.append(kind)
        self.rows.append([int(r) for r in rows])
        self.committed.append([int(p) for p in committed])
        self.confidences.append([rounded(c, 6) for c in confidence])

    def draw_pass(self):
        return len(self.kinds) - self.kinds.count("prompt")

    def first_token(self, position):
        """With shifted logits: the prediction of a block's first position, from a pass over all before it."""
        if not self.model.shift or position >= len(self.canvas) or self.canvas[position] != self.model.mask_id:
            return [], []
        logits = head(self.model, whole_pass(self.model, self.canvas[:position], self.block_length)[-1][-1:])
        greedy = dict(temperature=0.0, seed=0, remasking="low_confidence")
        x0, confidence, _ = predict(logits, [position], 0, self.model.mask_id, greedy, self.margin)
        self.canvas[position] = x0[0]
        return [position], confidence

    def run_prompt(self):
        piece = self.options["prompt_rows"] or self.whole
        piece = max(piece // self.block_length, 1) * self.block_length
        for first in range(0, self.whole, piece):
            end = min(first + piece, self.whole)
            filled = self.first_token(end) if end == self.whole else ([], [])
            self.note("prompt", range(first, end), *filled)

    def store_block(self, block):
        self.note("store", block, *self.first_token(block[-1] + 1))

    # -- one block

    def masked(self, positions):
        return self.canvas[positions] == self.model.mask_id

    def predictor(self, positions):
        """The rows that predict these positions."""
        return np.maximum(np.asarray(positions) - 1, 0) if self.model.shift else np.asarray(positions)

    def candidates(self, block):
        """Flags of the block's rows: the masks that a step may commit."""
        masked, size = self.masked(block), self.options["small_block"] or len(block)
        first = np.flatnonzero(masked)[0] // size * size
        return masked & (np.arange(len(block)) // size * size == first)

    def decode(self, block):
        self.store = Store(self.model, block[-1] + 1)
        before = np.arange(block[0])
        layers(self.model, range(self.model.n_layers), self.store, embed(self.model, self.canvas[before]), before,
               block_causal(before, block[-1] + 1, self.block_length)) if len(before) else None
        steps, masks = self.options["steps"], int(np.sum(self.masked(block)))
        self.quotas = get_num_transfer_tokens(masks, max(1, steps // self.n_blocks) if steps else self.block_length)
        self.reference, self.age = None, np.zeros(len(block), dtype=int)
        self.ran_id = np.full(len(block), -1)
        self.output = np.zeros((len(block), self.model.config["hidden_size"]))
        self.last_confidence = np.full(len(block), np.nan)
        t = 0
        while np.any(self.masked(block)):
            self.step(block, t)
            t += 1
        return t

    def quota(self, t):
        return max(1, self.quotas[t]) if t < len(self.quotas) else 1

    def rows_pass(self, which, x, block, runs):
        """Layers `which` for the rows of the block that run."""
        positions = block[runs]
        allowed = block_causal(positions, block[-1] + 1, self.block_length)
        return layers(self.model, which, self.store, x, positions, allowed)

    def step(self, block, t):
        by_rows = self.options["skip_rule"] == "rows"
        runs = self.chosen_rows(block, t) if by_rows else np.ones(len(block), dtype=bool)
        x = embed(self.model, self.canvas[block[runs]])
        states = [x] + self.rows_pass(range(self.lower), x, block, runs)
        active = runs.copy()
        if self.may_skip:
            active = ~self.stable_rows(block, states[1:self.lower], t)
            if np.any(active):
                last = self.rows_pass(range(self.lower, self.model.n_layers), states[-1][active], block, active)[-1]
        output = np.full_like(self.output, np.nan)
        output[runs] = states[-1]
        if self.may_skip and np.any(active):
            output[active] = last
        self.count(block, active)
        self.ran_id[active] = self.canvas[block[active]]
        if self.may_skip:
            kept = np.where(active[:, None], output, self.output)
            self.remember(states[1:self.lower], kept, active)
            output = output if self.options["skip_policy"] == "exit" else kept
        self.commit(block, output, runs, t)

    def commit(self, block, output, runs, t):
        """`runs`: rows that entered the pass; what they predict may be committed."""
        source = self.predictor(block) - block[0]
        may = self.candidates(block) & runs[source]
        positions = block[may]
        logits = head(self.model, output[source[may]])
        x0, confidence, entropy = predict(logits, positions, self.draw_pass(), self.model.mask_id, self.options,
                                          self.margin)
        self.last_confidence[may] = confidence
        chosen = get_transfer_index(confidence, entropy, positions, self.quota(t), self.options, self.margin)
        chosen = sorted(chosen, key=lambda i: positions[i])
        self.note("step", block[runs], positions[chosen], confidence[chosen])
        self.canvas[positions[chosen]] = x0[chosen]

    def count(self, block, active):
        masked = self.masked(block)
        self.active.append(int(np.sum(active)))
        self.stable_masked.append(int(np.sum(~active & masked)))
        self.total += len(block) * self.model.n_layers
        lower = self.lower if self.may_skip else 0
        self.computed += len(block) * lower + int(np.sum(active)) * (self.model.n_layers - lower)

    # -- TokenSkip

    def full(self, t):
        every = self.options["skip_full_every"]
        return t == 0 or (every and t % every == 0)

    def chosen_rows(self, block, t):
        if self.full(t):
            return np.ones(len(block), dtype=bool)
        changed, candidates = self.canvas[block] != self.ran_id, self.candidates(block)
        chosen = self.best(block, candidates, t)
        for row in np.flatnonzero(changed):
            before, after = np.flatnonzero(candidates[:row]), row + 1 + np.flatnonzero(candidates[row + 1:])
            chosen[before[::-1][:self.options["rows_ahead"]]] = True
            chosen[after[:self.options["rows_ahead"]]] = True
        runs = changed
        runs[self.predictor(block[chosen]) - block[0]] = True
        return runs

    def best(self, block, candidates, t):
        if self.options["threshold"] is not None or self.options["factor"] is not None:
            return candidates.copy()
        count, value = self.quota(t) + self.options["rows_margin"], self.last_confidence.copy()
        if self.options["remasking"] == "random":
            value = np.array([random_confidence(self.options["seed"], int(p), self.draw_pass()) for p in block])
        order = sorted(np.flatnonzero(candidates), key=lambda i: (np.isnan(value[i]), -value[i], i))
        if count < len(order) and self.options["remasking"] != "random" and not np.isnan(value[order[count - 1]]):
            self.margin.note(value[order[count - 1]] - np.nan_to_num(value[order[count]]))
        chosen = np.zeros(len(block), dtype=bool)
        chosen[order[:count]] = True
        return chosen

    def stable_rows(self, block, states, t):
        if self.reference is None or self.full(t):
            return np.zeros(len(block), dtype=bool)
        allowed = self.canvas[block] == self.ran_id
        if not self.options["skip_masked"]:
            masked = self.masked(block)
            allowed &= ~masked
            allowed[self.predictor(block[masked]) - block[0]] = False
        if self.options["skip_max_age"]:
            allowed &= self.age < self.options["skip_max_age"]
        return allowed & looks_stable(self.reference, states, self.options, self.margin, allowed)

    def remember(self, states, output, active):
        if self.reference is None or self.options["skip_reference"] == "last-step":
            self.reference = states
        else:
            self.reference = [np.where(active[:, None], new, old) for new, old in zip(states, self.reference)]
        self.output, self.age = output, np.where(active, 0, self.age + 1)

    # -- all blocks

    def ends(self, block):
        own = block[(block >= self.prompt_length) & (block < self.asked)]
        return self.options["eos_stop"] and any(int(i) in self.model.eos_ids for i in self.canvas[own])

    def run(self):
        starts = range(self.whole, len(self.canvas), self.block_length)
        self.n_blocks, finish = len(starts), "length"
        first = np.arange(self.whole, self.whole + self.block_length)
        if self.model.mask_id in self.canvas and (np.any(self.masked(first)) or not self.ends(first)):
            self.run_prompt()
        for start in starts:
            block = np.arange(start, start + self.block_length)
            nfe = self.decode(block)
            more = self.model.mask_id in self.canvas[block[-1] + 1:]
            self.blocks.append({"nfe": nfe, "mask_residual": 0})
            if self.ends(block):
                finish = "eos"
                self.canvas[self.canvas == self.model.mask_id] = self.model.eos_ids[0]
                break
            if more:
                self.store_block(block)
                self.blocks[-1]["nfe"] += 1
        return self.result(finish)

    def result(self, finish):
        canvas = [int(i) for i in self.canvas[:self.asked]]
        assert self.model.mask_id not in canvas
        return {"tokens": canvas[self.prompt_length:], "canvas": canvas, "nfe": len(self.kinds),
                "prompt_passes": self.kinds.count("prompt"), "storing_passes": self.kinds.count("store"),
                "mask_residual": 0, "finish_reason": finish, "blocks": self.blocks,
                "skip": {"active": self.active, "stable_masked": self.stable_masked,
                         "token_layers_computed": self.computed, "token_layers_total": self.total},
                "committed": self.committed, "confidence": self.confidences, "kinds": self.kinds,
                "n_rows": [len(r) for r in self.rows], "rows": self.rows, "margin": rounded(self.margin.smallest, 3)}


# ---------------------------------------------------------------------------------------------------------------------
# Cases. A case names what it must show; prompts are drawn until it does.

RULES = {"schedule": {}, "threshold": {"threshold": 0.7}, "factor": {"factor": 1.0}}
SKIP = dict(skip_rule="states", skip_layer_k=2, skip_threshold=0.97)
ROWS = dict(skip_rule="rows")


def differs(**changes):
    return lambda result, rerun: result["canvas"] != rerun(changes)["canvas"]


def same(**changes):
    return lambda result, rerun: result["canvas"] == rerun(changes)["canvas"]


def differs_in_rows(**changes):
    return lambda result, rerun: result["rows"] != rerun(changes)["rows"]


def differs_in_active(**changes):
    return lambda result, rerun: result["skip"]["active"] != rerun(changes)["skip"]["active"]


def several_and_single(result, rerun):
    counts = [len(c) for c, kind in zip(result["committed"], result["kinds"]) if kind == "step"]
    return max(counts) > 1 and 1 in counts


def ends(reason, n_blocks):
    return lambda result, rerun: result["finish_reason"] == reason and len(result["blocks"]) == n_blocks


def passes(prompt, storing):
    return lambda result, rerun: (result["prompt_passes"], result["storing_passes"]) == (prompt, storing)


def case(name, model, *wants, prompt_length=9, holes=(), fixed=None, **options):
    return dict(name=name, model=model, wants=wants, prompt_length=prompt_length, holes=holes, fixed=fixed or {},
                options={**DEFAULTS, **options})


def plain_cases(model):
    block = {"sdar-bf16": 4, "sdar-tied-f32": 8, "fast-dllm-bf16": 8, "fast-dllm-f16": 12}[model]
    usual = dict(gen_length=2 * block + 3)
    for rule, options in RULES.items():
        yield case(f"{model} {rule}", model, *([several_and_single] if options else []), **usual, **options)
    yield case(f"{model} no prompt", model, passes(0, 2), prompt_length=0, gen_length=3 * block, eos_stop=False,
               fixed={1: None})  # (of masks alone no position is the surest)
    yield case(f"{model} prompt below a block", model, passes(0, 2), prompt_length=block - 1, **usual)
    yield case(f"{model} prompt of a block", model, passes(1, 2), prompt_length=block, **usual)
    yield case(f"{model} prompt of three blocks", model, passes(1, 1), prompt_length=3 * block, gen_length=2 * block)
    yield case(f"{model} prompt in pieces", model, passes(3, 2), prompt_length=5 * block + 1, prompt_rows=2 * block + 1,
               **usual)
    yield case(f"{model} prompt a block at a time", model, passes(4, 2), prompt_length=4 * block, prompt_rows=1,
               **usual)
    yield case(f"{model} one token", model, passes(1, 0), prompt_length=2 * block, gen_length=1)
    yield case(f"{model} within the prompt's block", model, passes(1, 0), prompt_length=2 * block + 1, gen_length=2)
    yield case(f"{model} other block", model, differs(block_length=None), block_length=6, **usual)
    yield case(f"{model} block of one", model, block_length=1, gen_length=5)
    yield case(f"{model} steps", model, differs(steps=None), steps=6, **usual)
    yield case(f"{model} fewer steps than blocks", model, steps=2, **usual)
    yield case(f"{model} temperature", model, differs(temperature=0.0), temperature=0.7, seed=2**40 + 3, **usual)
    yield case(f"{model} random", model, differs(remasking="low_confidence"), remasking="random", seed=5, **usual)
    yield case(f"{model} temperature threshold", model, differs(seed=1), temperature=1.0, threshold=0.3, seed=9,
               **usual)
    yield case(f"{model} end", model, ends("eos", 2), gen_length=4 * block, threshold=0.8)
    yield case(f"{model} end in the first block", model, ends("eos", 1), prompt_length=block + 1, gen_length=4 * block)
    yield case(f"{model} end beyond the cut", model, lambda r, rerun: r["finish_reason"] == "length", **usual)
    yield case(f"{model} end ignored", model, differs(eos_stop=True), gen_length=4 * block, eos_stop=False)
    yield case(f"{model} fixed", model, prompt_length=block + 1, fixed={0: None, 3: None, block + 1: None}, **usual)
    yield case(f"{model} fixed block", model, passes(1, 2), prompt_length=2 * block, gen_length=3 * block,
               fixed={i: None for i in range(block, 2 * block)})
    yield case(f"{model} fixed at the end", model, passes(1, 0), prompt_length=block, gen_length=3 * block,
               fixed={i: None for i in range(block, 3 * block)})
    yield case(f"{model} nothing masked", model, passes(0, 0), prompt_length=block, gen_length=block,
               fixed={i: None for i in range(block)})
    yield case(f"{model} infill", model, prompt_length=2 * block - 1, holes=(block, block + 2), **usual)


def skip_cases(model):
    block = {"sdar-bf16": 8, "sdar-tied-f32": 8, "fast-dllm-bf16": 8, "fast-dllm-f16": 12}[model]
    usual = dict(gen_length=2 * block, block_length=block, prompt_length=block + 3)
    off, masked = differs(skip_rule="off"), dict(SKIP, skip_masked=True)
    yield case(f"{model} rows", model, off, **usual, **ROWS)
    yield case(f"{model} rows margin 0", model, differs(rows_margin=4), **usual, **ROWS, rows_margin=0)
    yield case(f"{model} rows ahead 1", model, differs(rows_ahead=0), **usual, **ROWS, rows_margin=0, rows_ahead=1)
    yield case(f"{model} rows threshold", model, off, several_and_single, **usual, **ROWS, threshold=0.7)
    yield case(f"{model} rows full every 1", model, same(skip_rule="off"), **usual, **ROWS, rows_margin=0,
               skip_full_every=1)
    yield case(f"{model} rows full every 3", model, differs_in_rows(skip_full_every=0), **usual, **ROWS, rows_margin=1,
               skip_full_every=3)
    yield case(f"{model} rows random", model, off, **usual, **ROWS, rows_margin=1, remasking="random", seed=11)
    yield case(f"{model} rows temperature", model, off, **usual, **ROWS, rows_margin=1, temperature=0.6, seed=3)
    yield case(f"{model} rows infill", model, off, holes=(block + 1,), fixed={2: None, block: None}, **usual, **ROWS,
               rows_margin=0, rows_ahead=1)
    yield case(f"{model} states", model, off, **usual, **SKIP)
    yield case(f"{model} states threshold 1", model, same(skip_rule="off"), **usual, **dict(masked, skip_threshold=1.0))
    yield case(f"{model} states masked", model, differs(skip_masked=False), **usual, **masked)
    yield case(f"{model} states masked exit", model, differs(skip_policy="reuse"), **usual, **masked,
               skip_policy="exit")
    yield case(f"{model} states last-computed", model, differs(skip_reference="last-step"), **usual, **masked,
               skip_reference="last-computed")
    yield case(f"{model} states max age", model, differs(skip_max_age=0), **usual, **masked, skip_max_age=2)
    yield case(f"{model} states full every", model, differs(skip_full_every=0), **usual, **masked, skip_full_every=3)
    yield case(f"{model} states temperature", model, off, **usual, **masked, temperature=0.5, seed=8)


def end_cases():
    for model in MODELS:
        block = {"sdar-bf16": 4, "sdar-tied-f32": 8, "fast-dllm-bf16": 8, "fast-dllm-f16": 12}[model]
        config = MODELS[model]["config"]
        eos = config["eos_token_id"] if isinstance(config["eos_token_id"], int) else config["eos_token_id"][1]
        yield case(f"{model} given end", model, ends("eos", 1), passes(0, 0), prompt_length=block, gen_length=2 * block,
                   fixed={i: eos if i == 1 else None for i in range(block)})
        yield case(f"{model} end in the prompt's rest", model, lambda r, rerun: len(r["blocks"]) > 1,
                   prompt_length=block + 3, gen_length=2 * block, fixed={-2: eos})


def small_cases(model):
    block = {"fast-dllm-bf16": 8, "fast-dllm-f16": 12, "sdar-tied-f32": 8}[model]
    usual = dict(gen_length=2 * block, small_block=4, prompt_length=block + 1)
    small = differs(small_block=0)
    for rule, options in RULES.items():
        yield case(f"{model} small blocks, {rule}", model, small, **usual, **options)
    yield case(f"{model} small blocks of one", model, small, **{**usual, "small_block": 1})
    yield case(f"{model} small blocks, steps", model, small, **usual, steps=4)
    yield case(f"{model} small blocks, rows", model, differs(skip_rule="off"), small, **usual, **ROWS, rows_margin=0)
    yield case(f"{model} small blocks, rows, threshold", model, differs(skip_rule="off"), small, **usual, **ROWS,
               threshold=0.8)
    yield case(f"{model} small blocks, states", model, differs(skip_rule="off"), small, **usual, **SKIP)


def cases():
    for model in MODELS:
        yield from plain_cases(model)
    yield from end_cases()
    for model in MODELS:
        yield from skip_cases(model)
    for model in ("sdar-tied-f32", "fast-dllm-bf16", "fast-dllm-f16"):
        yield from small_cases(model)


def first_canvas(case, model, prompt_seed):
    """The prompt, then masks; holes and fixed tokens put in."""
    gen_length, n = case["options"]["gen_length"], case["prompt_length"]
    ids = [int(word) % model.vocabulary for word in draw(prompt_seed, n + gen_length, 0, 0, PROMPT)]
    ids = [4 if i == model.mask_id or i in model.eos_ids else i for i in ids]
    canvas = ids[:n] + [model.mask_id] * gen_length
    for hole in case["holes"]:
        canvas[hole] = model.mask_id
    for index, token in case["fixed"].items():
        canvas[n + index] = ids[n + index] if token is None else token
    return canvas


def golden_case(case, models, generation=Generation, canvas_of=first_canvas):
    """Prompts are drawn until the case shows what it is for, with room to spare in every decision."""
    model = models[case["model"]]
    for prompt_seed in range(2000):
        canvas = canvas_of(case, model, prompt_seed)

        def run(changes):
            return generation(model, canvas, case["prompt_length"], {**case["options"], **changes}).run()

        expected = run({})
        if expected["margin"] > MIN_MARGIN and all(want(expected, run) for want in case["wants"]):
            break
    else:
        raise AssertionError("no prompt shows: " + case["name"])
    if not np.isfinite(expected["margin"]):
        expected["margin"] = None  # nothing was decided
    golden = {"name": case["name"], "model": case["model"], "prompt": canvas[:case["prompt_length"]]}
    if case["holes"] or case["fixed"]:
        golden["canvas"] = canvas
    options = {**case["options"], "block_length": case["options"]["block_length"] or model.block}
    if generation is Generation and options["skip_rule"] != "rows":
        del expected["rows"]  # they follow from the kinds
    return {**golden, "options": options, "expected": expected}


# ---------------------------------------------------------------------------------------------------------------------
# Dream: reference.py's caches over Qwen2.5's network, whose tensors get LLaDA's names here

def named_as_llada(name):
    names = {"embed_tokens": "wte", "norm": "ln_f", "lm_head": "ff_out", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ff_norm", "o_proj": "attn_out", "gate_proj": "ff_proj", "down_proj": "ff_out"}
    parts = [p for p in name.split(".") if p not in ("model", "self_attn", "mlp")]
    return ".".join("blocks" if p == "layers" else names.get(p, p) for p in parts)


class FullModel(reference.Model):
    def __init__(self, spec, tensors):
        c = spec["config"]
        self.spec = dict(d_model=c["hidden_size"], rope_theta=c["rope_theta"], rms_norm_eps=c["rms_norm_eps"],
                         weight_tying=c["tie_word_embeddings"], vocab_size=c["vocab_size"],
                         mask_token_id=c["mask_token_id"], eos_token_id=c["eos_token_id"])
        self.weight = {named_as_llada(name): values for name, (_, _, values) in tensors.items()}
        self.n_layers, self.n_heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.n_kv_heads, self.head_dim = c["num_key_value_heads"], head_dim(c)
        self.mask_id, self.eos_id = c["mask_token_id"], c["eos_token_id"]


class ShiftedGeneration(reference.Generation):
    """What output_states returns are the states that predict the block's positions, NaN where there is none."""

    def sources(self, block):
        return np.maximum(block - 1, 0)

    def before(self, block, chosen):
        """The rows outside the block that predict the chosen positions."""
        return np.setdiff1d(self.sources(block)[chosen], block)

    def spread(self, block, rows, states):
        out = np.full((len(block), states.shape[1]), np.nan)
        for i, source in enumerate(self.sources(block)):
            if source in rows:
                out[i] = states[np.flatnonzero(rows == source)[0]]
        return out

    def output_states(self, block, step):
        masked, everything = self.canvas[block] == self.model.mask_id, np.arange(len(self.canvas))
        if step == 0 and self.starts_whole():
            self.refresh(block, everything)
            return self.spread(block, everything, self.whole_output)
        if self.options["cache"] == "none":
            self.refreshes.append(self.nfe)
            return self.spread(block, everything, self.rows(everything)[-1])
        if self.options["cache"] == "prefix":
            rows = everything[block[0] - int(masked[0] and block[0] > 0):]
            return self.spread(block, rows, self.rows(rows)[-1])
        return self.rows_step(block, step) if self.rule == "rows" else self.block_step(block, step)

    def rows(self, positions):
        states = super().rows(positions)
        self.whole_output = states[-1]
        return states

    def commit(self, block, output, quota):
        masked = (self.canvas[block] == self.model.mask_id) & ~np.isnan(output[:, 0])
        positions = block[masked]
        logits = reference.head(self.model, output[masked])
        x0, confidence, entropy = predict(logits, positions, self.nfe, self.model.mask_id, self.options, self.margin)
        chosen = get_transfer_index(confidence, entropy, positions, quota, self.options, self.margin)
        chosen = sorted(chosen, key=lambda i: positions[i])
        self.last_confidence[positions] = confidence
        self.canvas[positions[chosen]] = x0[chosen]
        self.committed.append([int(positions[i]) for i in chosen])
        self.confidences.append([rounded(confidence[i], 6) for i in chosen])

    def rows_step(self, block, t):
        masked, every = self.canvas[block] == self.model.mask_id, self.options["skip_full_every"]
        runs, before = np.ones(len(block), dtype=bool), self.before(block, masked)
        if t > 0 and not (every and t % every == 0):
            runs = self.canvas[block] != self.upper_id[block]
            chosen = self.best_masked(block, masked, t) | self.masked_neighbours(runs, masked)
            before = self.before(block, chosen)
            runs |= np.isin(block, self.sources(block)[chosen])
        rows = np.union1d(block[runs], before)
        self.count_step(block, runs, int(np.sum(runs)) * self.model.n_layers)
        states = self.rows(rows)[-1]
        self.note_ran(rows)
        return self.spread(block, rows, states)

    def block_step(self, block, t):
        rows = np.union1d(block, self.before(block, self.canvas[block] == self.model.mask_id))
        own = np.isin(rows, block)
        x = self.enter(rows)
        states = [x] + reference.run_layers(self.model, self.cache, range(self.lower), x, rows, self.record)
        last, compared = states[-1], [h[own] for h in states[1:self.lower]]
        active = ~self.stable_tokens(block, compared, t)
        running = np.ones(len(rows), dtype=bool)
        running[own] = active
        self.count_step(block, active, self.token_layers(len(block), int(np.sum(active))))
        if self.may_skip:
            last[running] = self.upper_rows(last[running].copy(), rows[running])
        self.note_ran(rows[running])
        if self.may_skip:
            kept = np.where(active[:, None], last[own], self.output)
            self.remember(compared, kept, active)
            if self.options["skip_policy"] == "reuse":
                last[own] = kept
        return self.spread(block, rows, last)

    def stable_tokens(self, block, states, t):
        stable = super().stable_tokens(block, states, t)
        if not self.options["skip_masked"]:
            masked = self.canvas[block] == self.model.mask_id
            stable &= ~np.isin(block, self.sources(block)[masked])
        return stable


DREAM_LENGTHS = {"dream-f32": (9, dict(gen_length=24, block_length=8, steps=24)),
                 "dream-bf16": (6, dict(gen_length=20, block_length=10, steps=10))}


def dream_case(name, model, *wants, prompt_length=None, holes=(), fixed=None, **options):
    usual_prompt, lengths = DREAM_LENGTHS[model]
    plain = dict(skip_rule="off", rows_margin=4, rows_ahead=0, refresh="full", refresh_near=16, refresh_window=0,
                 refresh_rows=0, refresh_every=1)
    return dict(name=name, model=model, wants=wants, holes=holes, fixed=fixed or {},
                prompt_length=usual_prompt if prompt_length is None else prompt_length,
                options={**reference.DEFAULTS, **plain, **lengths, **options})


def dream_cases(model):
    off, states = differs(skip_rule="off"), dict(SKIP, skip_masked=True)
    for cache in ("none", "prefix", "dual"):
        other = [differs(cache="none")] if cache != "none" else []
        for rule, options in RULES.items():
            yield dream_case(f"{model} {cache} {rule}", model, *other, cache=cache, **options)
        yield dream_case(f"{model} {cache} temperature", model, differs(temperature=0.0), cache=cache, temperature=0.7,
                         seed=6)
        yield dream_case(f"{model} {cache} random", model, differs(remasking="low_confidence"), cache=cache,
                         remasking="random", seed=2)
        yield dream_case(f"{model} {cache} infill", model, *other, cache=cache, holes=(0, 2, 3, 5))
        yield dream_case(f"{model} {cache} fixed", model, cache=cache, fixed={0: None, 3: None, 11: None})
        yield dream_case(f"{model} {cache} end", model, ends("eos", 1), cache=cache, threshold=0.7)
        yield dream_case(f"{model} {cache} no prompt", model, cache=cache, prompt_length=0, fixed={1: None})
    for every in (0, 2):
        yield dream_case(f"{model} every {every}", model, differs(refresh_every=1), refresh_every=every)
        yield dream_case(f"{model} prefix, every {every}", model, differs(refresh_every=1), refresh_every=every,
                         cache="prefix")
    yield dream_case(f"{model} rows", model, off, **ROWS)
    yield dream_case(f"{model} rows margin 0", model, differs(rows_margin=4), **ROWS, rows_margin=0)
    yield dream_case(f"{model} rows ahead 1", model, differs(rows_ahead=0), **ROWS, rows_margin=0, rows_ahead=1)
    yield dream_case(f"{model} rows threshold", model, off, **ROWS, threshold=0.7)
    yield dream_case(f"{model} rows infill", model, off, **ROWS, rows_margin=0, holes=(0, 2, 3, 5))
    yield dream_case(f"{model} rows, every 0", model, off, differs(refresh_every=1), **ROWS, rows_margin=1,
                     refresh_every=0)
    yield dream_case(f"{model} rows full every 1", model, same(skip_rule="off"), **ROWS, rows_margin=0,
                     skip_full_every=1)
    yield dream_case(f"{model} rows full every 3", model, off, **ROWS, rows_margin=0, skip_full_every=3)
    yield dream_case(f"{model} states", model, off, **SKIP)
    yield dream_case(f"{model} states masked", model, differs(skip_masked=False), **states)
    yield dream_case(f"{model} states masked exit", model, differs(skip_policy="reuse"), **states, skip_policy="exit")
    yield dream_case(f"{model} states infill", model, off, **states, holes=(0, 2, 3, 5))
    yield dream_case(f"{model} states last-computed, warm", model, differs(skip_warm_start=False), **states,
                     skip_reference="last-computed", skip_warm_start=True)
    yield dream_case(f"{model} states temperature", model, off, **states, temperature=0.4, seed=12)


def dream_canvas(case, model, prompt_seed):
    ids = reference.first_canvas(case, model.spec, prompt_seed)
    return [4 if i == 65 else i for i in ids]  # (65 ends dream-f32's texts, too)


def dream_golden():
    models, goldens = {}, []
    for name, spec in DREAM.items():
        models[name] = FullModel(spec, make_tensors(spec))
        goldens += [golden_case(c, models, ShiftedGeneration, dream_canvas) for c in dream_cases(name)]
    assert all(65 not in g["expected"]["tokens"] for g in goldens if g["model"] == "dream-f32")
    return {"made_by": MADE_BY, "min_margin": MIN_MARGIN, "cases": goldens, "usage_errors": []}


def generate_golden(models):
    return {"made_by": MADE_BY, "min_margin": MIN_MARGIN, "cases": [golden_case(c, models) for c in cases()]}


def forward_golden(models):
    """A pass over three blocks from nothing: h_1 .. h_L of the first and the last row, and logits of all rows; logits
    of the last row where the last block is not whole."""
    goldens = []
    for name, model in models.items():
        ids = np.array([int(w) % model.vocabulary for w in draw(7, 3 * model.block, 2, 0, PROMPT)])
        ids[ids == model.mask_id] = 4
        states = whole_pass(model, ids, model.block)
        short = head(model, whole_pass(model, ids[:-1], model.block)[-1][-1:])
        goldens.append({"model": name, "block_length": model.block, "ids": ids.tolist(),
                        "first": rows_golden(h[0] for h in states[1:]), "last": rows_golden(h[-1] for h in states[1:]),
                        "logits": rows_golden(head(model, states[-1])), "short": rows_golden(short)})
    return {"made_by": MADE_BY, "passes": goldens}


# ---------------------------------------------------------------------------------------------------------------------

def derive():
    """path -> bytes of everything this script makes."""
    files, models = {}, {}
    for name, spec in MODELS.items():
        tensors = make_tensors(spec)
        models[name] = Model(spec, tensors)
        files.update({f"models/{name}/{path}": data for path, data in model_files(spec, tensors).items()})
    for name, spec in DREAM.items():
        files.update({f"models/{name}/{path}": data for path, data in model_files(spec, make_tensors(spec)).items()})
    goldens = {"forward_families": forward_golden(models), "generate_block": generate_golden(models),
               "generate_dream": dream_golden()}
    files.update({name + ".json": (reference.text(golden) + "\n").encode() for name, golden in goldens.items()})
    return files


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    return reference.check(derive()) if sys.argv[1:] else reference.write(derive())


if __name__ == "__main__":
    sys.exit(main())
