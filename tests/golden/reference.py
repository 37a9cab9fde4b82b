#!/usr/bin/env python3
"""The executable version of the document: LLaDA decoding and TokenSkip in plain NumPy.

    python3 tests/golden/reference.py            writes the models and the goldens beside this file
    python3 tests/golden/reference.py --check    derives them again and compares with what is committed

Needs NumPy (Debian: python3-numpy).

It shares no code with the library. Everything is computed in float64 on the stored weights; the library computes in
float32. A golden case is kept only if no decision in it (argmax, order of confidences, threshold, stability) is
closer than MIN_MARGIN, so that both must decide alike. Prompts are drawn until that holds.

Conventions
-----------
Random words   Philox4x32-10 (Salmon et al. 2011), key = (seed & 0xffffffff, seed >> 32). n is the number of the
               forward pass in this generation, from 0, block-start passes included; p the absolute position.
                 Gumbel noise of vocabulary index v: counter (v >> 2, p, n, 0), output word v & 3
                 `random` confidence:                counter (0, p, n, 1), output word 0, kept as float32(u)
               u = (word + 0.5) * 2^-32 in float64.
Argmax         score = logit - T*log(-log u) in float64, or the logit itself at T = 0. Rows of the whole embedding
               table compete. The mask id scores -inf (it stays in the softmax denominator). Lowest id wins ties.
Thresholds     `threshold`, `skip_threshold` and `skip_outlier` are float32 values; `factor` compares in float64:
               c_n >= 1 - f/(n+1). With the confidences c_1 >= c_2 >= ... of a step's candidates and their entropies
               h_1, h_2, ... in that order, each rule commits the most candidates n, at least 1, that satisfy
                 `frechet` d:        max(0, c_1 + ... + c_n - (n-1)) - (1 - c_n) > d
                 `entropy_bound` g:  h_1 + ... + h_n - max(h_1, ..., h_n) <= g
               `local_leap` x: an anchor has at least the confidence `threshold`. Committed are the best candidate, the
               anchors, and those of at least x that lie at most local_radius positions from an anchor. An entropy is
               that of the softmax without noise, the mask id included, in nats. The numbers are float32 values.
Blocks         A block is a list of positions: all of a block of the generated part, fixed tokens included, or, decoded
               first, the masked positions of the prompt (infilling). Each uses the same steps_per_block. A block
               without a mask at its start costs no forward pass; one that holds none any more ends at once.
Rows computed  By a further step of a block: `none` all, `prefix` from the block's first position to the end of the
               canvas, `dual` the block's positions.
Schedule       Without threshold and factor, step i of the block (0 is its block-start pass) commits
               num_transfer_tokens[i] tokens, at least 1.
End            A block of the generated part that holds eos_token_id when it ends (be it a fixed one) ends generation:
               what is still masked becomes eos_token_id, fixed tokens stay, `blocks` lists only the blocks reached, and
               finish_reason is "eos" even if it was the last block. The infill block never ends generation.
TokenSkip      t = 1, 2, ... counts the block's steps after its block-start pass (t = 0). skip_full_every n: all tokens
               are active where t % n == 0. skip_max_age n: a token skipped n steps in a row is active. The cosine
               with a zero vector is 0. `exit`: a stable token's output is its h_K of this step. `reuse`: its last h_L.
skip_refresh   Reference of a position: h_1..h_(K-1) of the refresh that last ran it through all layers. Full steps
               (skip_full_every) concern block steps only. Refreshes are counted in token layers as block steps are.
refresh_every  n: the first block that starts with a mask in it, and every n-th after it, start with a pass over the
               whole canvas; the others with a block step (t = 0), of `prefix` or `dual`, that has no prev. 0: only the
               first.
refresh_rows   R: every block step of `dual` also computes R further positions, through all layers, whatever TokenSkip
               decides: first those whose upper layers last ran with another id than they have, then those that ran the
               longest ago; of equals the nearest to a position of the block, then the lowest.
skip_rule      `states` is the one above. `rows`: block step t > 0 runs, through all layers, only C, M and N of the
               block's rows. C: whose id is not the one with which they last ran. M: the masked ones of the best last
               confidence, as many as this pass commits and rows_margin more; all of them where no schedule says how
               many it commits. N: rows_ahead masked ones on either side of each of C. Only masked rows that ran may be
               committed. A confidence is that of the last pass that ran the row; with `random` this pass's draw. All
               rows run where skip_full_every has t % n == 0. skip_layer_k and what belongs to it are then of
               skip_refresh only. Token layers are counted of the block's rows.
refresh_window W > 0: while a block is decoded, positions from E on are neither run nor attended to. E: W after the
               block's last position, or after the last position that holds no mask when the block starts, if that is
               further. "The whole canvas" then ends at E. With `full` only where refresh_every is 1: a row whose K
               and V nobody has computed is not attended to.
refresh        `near`: the block starts that refresh_every leaves out are a pass, too, and count as refreshes: over
               attended positions whose id is not the one with which they last ran, the block, and the masks among the
               refresh_near positions after it; refresh_rows adds to them. Rows run in order of position.

Files
-----
models/*/              random models without a tokenizer
llada-8b-instruct/     the published metadata files of that model, copied
philox, schedule, selection, cosine .json    small cases of one function each
forward_*.json         passes with every record (std is unbiased; `first` opens the first row, `last` ends the last one)
generate.json          generations. `canvas`, where present, is the whole starting canvas: masks in the prompt, fixed
                       tokens after it. `committed` lists each pass's positions, `confidence` theirs;
                       `margin` is the smallest distance of a decision (null where there was none to take).
                       `usage_errors` are options to refuse
generate_refresh.json  the same with skip_refresh
generate_rows.json     the same with refresh_rows and refresh_every, which the others leave out
generate_rule_rows.json  the same with skip_rule `rows`. `rows` are the positions that entered each pass, in order;
                       `refreshes` has 1 where the pass was a refresh
generate_near.json     the same with refresh `near` and refresh_window
generate_transfer.json the same with `frechet`, `entropy_bound` and `local_leap`
"""

import json
import os
import struct
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are tiny, and one thread sums in one order
try:
    import numpy as np
except ModuleNotFoundError:
    sys.exit(os.path.basename(sys.argv[0]) + ": needs NumPy, which this Python has not (Debian: python3-numpy)")

HERE = os.path.dirname(os.path.abspath(__file__))
MADE_BY = "python3 tests/golden/reference.py"
MIN_MARGIN = 5e-4

# ---------------------------------------------------------------------------------------------------------------------
# Philox4x32-10

GUMBEL, CONFIDENCE, WEIGHTS, PROMPT = 0, 1, 2, 3  # last counter word; the last two are used by this script only


def philox4x32(counter, key):
    """Four uint32 words for a counter of four and a key of two; any of them may be an array."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(words):
    """The open interval (0, 1): neither log u nor log(-log u) can be infinite."""
    return (np.asarray(words, dtype=np.float64) + 0.5) * 2.0**-32


def draw(seed, count, a, b, stream):
    """Words 0..count-1 of the stream: word i is output i & 3 of counter (i >> 2, a, b, stream)."""
    blocks = philox4x32((np.arange((count + 3) // 4), a, b, stream), (seed & 0xFFFFFFFF, seed >> 32))
    return np.stack([np.broadcast_to(w, blocks[0].shape) for w in blocks], axis=1).reshape(-1)[:count]


PHILOX_KNOWN = [  # counter, key, output: the published known-answer vectors
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
]


def check_philox():
    for counter, key, expected in PHILOX_KNOWN:
        assert [int(w) for w in philox4x32(counter, key)] == expected


# ---------------------------------------------------------------------------------------------------------------------
# Models: tiny, random, in the folder layout of Hugging Face

MODELS = {
    "mha-f32": dict(seed=11, dtype="F32", shards=1, d_model=32, n_layers=4, n_heads=4, n_kv_heads=4,
                    mlp_hidden_size=48, vocab_size=64, embedding_size=64, include_qkv_bias=False, weight_tying=False,
                    rope_theta=500000.0, rms_norm_eps=1e-05, mask_token_id=63, eos_token_id=62, pad_token_id=62),
    "gqa-bf16": dict(seed=22, dtype="BF16", shards=3, d_model=48, n_layers=6, n_heads=6, n_kv_heads=2,
                     mlp_hidden_size=40, vocab_size=72, embedding_size=72, include_qkv_bias=True, weight_tying=True,
                     rope_theta=10000.0, rms_norm_eps=1e-06, mask_token_id=70, eos_token_id=1, pad_token_id=0),
    "odd-f16": dict(seed=33, dtype="F16", shards=1, d_model=40, n_layers=5, n_heads=4, n_kv_heads=4,
                    mlp_hidden_size=52, vocab_size=79, embedding_size=83, include_qkv_bias=False, weight_tying=False,
                    rope_theta=500000.0, rms_norm_eps=1e-05, mask_token_id=77, eos_token_id=3, pad_token_id=3),
}


def config_json(spec):
    config = json.load(open(os.path.join(HERE, "llada-8b-instruct", "config.json")))
    config.update({name: value for name, value in spec.items() if name not in ("seed", "dtype", "shards")})
    config["mlp_ratio"] = 1
    config["max_sequence_length"] = 256
    config["precision"] = {"F32": "fp32", "BF16": "amp_bf16", "F16": "amp_fp16"}[spec["dtype"]]
    return config


def tensor_shapes(spec):
    """(name, shape, scale) of every tensor. Scales make logits decisive and let tokens move each other."""
    d, mlp, rows = spec["d_model"], spec["mlp_hidden_size"], spec["embedding_size"]
    kv = d // spec["n_heads"] * spec["n_kv_heads"]
    head = 4.0 / d**0.5
    yield "wte.weight", (rows, d), head if spec["weight_tying"] else 1.0
    for i in range(spec["n_layers"]):
        block = f"blocks.{i}."
        yield block + "attn_norm.weight", (d,), 0.2
        for name, width in (("q_proj", d), ("k_proj", kv), ("v_proj", kv)):
            yield block + name + ".weight", (width, d), 1.6 / d**0.5
            if spec["include_qkv_bias"]:
                yield block + name + ".bias", (width,), 0.5
        yield block + "attn_out.weight", (d, d), 1.0 / d**0.5
        yield block + "ff_norm.weight", (d,), 0.2
        yield block + "ff_proj.weight", (mlp, d), 1.2 / d**0.5
        yield block + "up_proj.weight", (mlp, d), 1.2 / d**0.5
        yield block + "ff_out.weight", (d, mlp), 1.2 / mlp**0.5
    yield "ln_f.weight", (d,), 0.2
    if not spec["weight_tying"]:
        yield "ff_out.weight", (rows, d), head


def to_bf16_bits(values):
    """Round float32 to bfloat16, ties to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def stored(values, dtype):
    """Bytes of the tensor as stored, and the float64 values they stand for."""
    if dtype == "BF16":
        bits = to_bf16_bits(values)
        return bits.astype("<u2").tobytes(), (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    kept = values.astype({"F32": "<f4", "F16": "<f2"}[dtype])
    return kept.tobytes(), kept.astype(np.float64)


def make_tensors(spec):
    """name -> (shape, bytes, float64 values). Uniform draws: exact arithmetic, the same on every machine."""
    tensors = {}
    for index, (name, shape, scale) in enumerate(tensor_shapes(spec)):
        u = uniform(draw(spec["seed"], int(np.prod(shape)), index, 0, WEIGHTS)).reshape(shape)
        values = (u - 0.5) * (12**0.5 * scale)
        if name.endswith("norm.weight") or name == "ln_f.weight":
            values = values + 1.0
        data, exact = stored(values, spec["dtype"])
        tensors["model.transformer." + name] = (shape, data, exact)
    return tensors


def safetensors_bytes(tensors, names, dtype):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        shape, data, _ = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors[name][1] for name in names)


def model_files(spec, tensors):
    """path -> bytes of one model folder."""
    files = {"config.json": (json.dumps(config_json(spec), indent=2) + "\n").encode()}
    if spec["shards"] == 1:
        files["model.safetensors"] = safetensors_bytes(tensors, sorted(tensors), spec["dtype"])
        return files
    n = spec["shards"]
    shard_name = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    # As in LLaDA's own files, neighbours land in different shards.
    where = {name: shard_name[index * 2 % n] for index, name in enumerate(sorted(tensors))}
    for shard in shard_name:
        names = [name for name in sorted(tensors) if where[name] == shard]
        files[shard] = safetensors_bytes(tensors, names, spec["dtype"])
    total = sum(len(data) for _, data, _ in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    files["model.safetensors.index.json"] = (json.dumps(index, indent=2) + "\n").encode()
    return files


class Model:
    def __init__(self, spec, tensors):
        self.spec = spec
        self.weight = {name[len("model.transformer."):]: values for name, (_, _, values) in tensors.items()}
        self.n_layers = spec["n_layers"]
        self.n_heads, self.n_kv_heads = spec["n_heads"], spec["n_kv_heads"]
        self.head_dim = spec["d_model"] // spec["n_heads"]
        self.mask_id, self.eos_id = spec["mask_token_id"], spec["eos_token_id"]

    def linear(self, name, x):
        bias = self.weight.get(name + ".bias")
        y = x @ self.weight[name + ".weight"].T
        return y if bias is None else y + bias

    def norm(self, name, x):
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.spec["rms_norm_eps"]) * self.weight[name + ".weight"]


# ---------------------------------------------------------------------------------------------------------------------
# The transformer

class Cache:
    """K (after RoPE) and V of every layer for every position of the canvas: [n_layers, canvas, n_kv_heads*head_dim].
    Positions from `end` on are not attended to."""

    def __init__(self, model, canvas):
        shape = (model.n_layers, canvas, model.n_kv_heads * model.head_dim)
        self.k, self.v = np.zeros(shape), np.zeros(shape)
        self.end = canvas


class Trace:
    """Records of one pass, under the tracer's names. Shapes are [tokens, width]."""

    def __init__(self):
        self.records = []

    def add(self, name, layer, before, after):
        self.records.append((name, layer, before.shape, after.copy()))


def silent(name, layer, before, after):
    """Stands in for Trace.add where nobody looks."""


def rope(model, x, positions):
    """Rotate pairs (i, i + head_dim/2) of each head. x: [tokens, heads*head_dim]."""
    half = model.head_dim // 2
    frequency = model.spec["rope_theta"] ** (-2.0 * np.arange(half) / model.head_dim)
    angle = np.asarray(positions, dtype=np.float64)[:, None, None] * frequency  # [tokens, 1, half]
    cos, sin = np.cos(angle), np.sin(angle)
    heads = x.reshape(len(x), -1, model.head_dim)
    a, b = heads[..., :half], heads[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def attention(model, q, k, v):
    """Each query sees every row of k and v: no causal mask. Several query heads may share a key head."""
    q = q.reshape(len(q), model.n_heads, model.head_dim)
    k = k.reshape(len(k), model.n_kv_heads, model.head_dim)
    v = v.reshape(len(v), model.n_kv_heads, model.head_dim)
    out = np.empty_like(q)
    for head in range(model.n_heads):
        shared = head // (model.n_heads // model.n_kv_heads)
        weight = softmax(q[:, head] @ k[:, shared].T / np.sqrt(model.head_dim))
        out[:, head] = weight @ v[:, shared]
    return out.reshape(len(q), -1)


def silu(x):
    return x / (1.0 + np.exp(-x))


def run_layer(model, cache, layer, x, positions, record=silent):
    """One layer for the rows at `positions`: their K/V rows are replaced, then they attend to the cache."""
    block, name = f"blocks.{layer}.", f"layer_{layer}"
    before = x

    normed = model.norm(block + "attn_norm", x)
    record(name + "_attn_norm", layer, x, normed)
    q, k, v = (model.linear(block + part, normed) for part in ("q_proj", "k_proj", "v_proj"))
    for part, value in (("_q_proj", q), ("_k_proj", k), ("_v_proj", v)):
        record(name + part, layer, normed, value)
    q_rope, k_rope = rope(model, q, positions), rope(model, k, positions)
    record(name + "_rope_q", layer, q, q_rope)
    record(name + "_rope_k", layer, k, k_rope)
    cache.k[layer][positions], cache.v[layer][positions] = k_rope, v
    record(name + "_k_cache", layer, k_rope, cache.k[layer])
    record(name + "_v_cache", layer, v, cache.v[layer])
    attended = attention(model, q_rope, cache.k[layer][:cache.end], cache.v[layer][:cache.end])
    projected = model.linear(block + "attn_out", attended)
    record(name + "_attn_out", layer, attended, projected)
    x = x + projected

    normed = model.norm(block + "ff_norm", x)
    record(name + "_ff_norm", layer, x, normed)
    gate, up = model.linear(block + "ff_proj", normed), model.linear(block + "up_proj", normed)
    record(name + "_ff_proj", layer, normed, gate)
    record(name + "_up_proj", layer, normed, up)
    product = silu(gate) * up
    down = model.linear(block + "ff_out", product)
    record(name + "_ffn_out", layer, product, down)
    x = x + down
    record(name, layer, before, x)
    return x


def embed(model, ids, record=silent):
    x = model.weight["wte.weight"][ids]
    record("embedding", None, np.asarray(ids), x)
    return x


def run_layers(model, cache, layers, x, positions, record=silent):
    """The hidden states after each of `layers`: [h_(first+1), ...]."""
    states = []
    for layer in layers:
        x = run_layer(model, cache, layer, x, positions, record)
        states.append(x)
    return states


def head(model, x, record=silent):
    """Logits over every row of the embedding table."""
    normed = model.norm("ln_f", x)
    record("final_norm", None, x, normed)
    logits = model.linear("wte" if model.spec["weight_tying"] else "ff_out", normed)
    record("logits", None, normed, logits)
    return logits


# ---------------------------------------------------------------------------------------------------------------------
# Schedule and selection

class Margin:
    """The smallest distance by which any decision was taken."""

    def __init__(self):
        self.smallest = np.inf

    def note(self, distance):
        self.smallest = min(self.smallest, float(distance))


def get_num_transfer_tokens(mask_count, steps):
    base, extra = divmod(mask_count, steps)
    return [base + (1 if i < extra else 0) for i in range(steps)]


def predict(logits, positions, forward, mask_id, options, margin):
    """x0, its confidence and the entropy of the row for each candidate row of logits."""
    scores = logits.copy()
    if options["temperature"] > 0:
        for row, position in enumerate(positions):
            u = uniform(draw(options["seed"], logits.shape[1], position, forward, GUMBEL))
            scores[row] -= options["temperature"] * np.log(-np.log(u))
    scores[:, mask_id] = -np.inf
    x0 = np.argmax(scores, axis=1)  # the first of equals, so the lowest id
    best_two = np.sort(scores, axis=1)[:, -2:]
    margin.note(np.min(best_two[:, 1] - best_two[:, 0]))
    if options["remasking"] == "random":
        confidence = np.array([random_confidence(options["seed"], position, forward) for position in positions])
    else:
        confidence = softmax(logits)[np.arange(len(x0)), x0]
    return x0, confidence, entropies(logits)


def entropies(logits):
    """Of each row's softmax, in nats."""
    p = softmax(logits)
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)


def random_confidence(seed, position, forward):
    word = draw(seed, 1, position, forward, CONFIDENCE)
    return float(np.float32(uniform(word)[0]))


def single(options, name):
    return float(np.float32(options[name]))


def has_schedule(options):
    """No other rule says how many predictions a step commits."""
    return all(options.get(name) is None for name in ("threshold", "factor", "frechet", "entropy_bound"))


def most_that_fit(distances):
    """The largest n whose condition holds, by how far it is from not holding."""
    return max([n for n, distance in enumerate(distances, 1) if distance >= 0], default=0)


def get_transfer_index(confidence, entropy, positions, quota, options, margin):
    """Indices of the candidates to commit. Every rule but `local_leap` commits a beginning of the same order."""
    if options.get("local_leap") is not None:
        return leap(confidence, positions, options, margin)
    order = sorted(range(len(positions)), key=lambda i: (-confidence[i], positions[i]))
    ranked = [float(confidence[i]) for i in order]
    if options.get("frechet") is not None:
        limit = single(options, "frechet")  # it must be exceeded, but no case meets it exactly
        distances = [max(0.0, sum(ranked[:n]) - (n - 1)) - (1.0 - ranked[n - 1]) - limit
                     for n in range(1, len(ranked) + 1)]
        count = most_that_fit(distances)
    elif options.get("entropy_bound") is not None:
        limit, h = single(options, "entropy_bound"), [float(entropy[i]) for i in order]
        distances = [limit - (sum(h[:n]) - max(h[:n])) for n in range(1, len(h) + 1)]
        count = most_that_fit(distances)
    elif options["threshold"] is not None:
        distances = [c - single(options, "threshold") for c in ranked]
        count = most_that_fit(distances)
    elif options["factor"] is not None:
        distances = [c - (1.0 - options["factor"] / (n + 1)) for n, c in enumerate(ranked, 1)]
        count = most_that_fit(distances)
    else:
        count, distances = min(quota, len(ranked)), []
    count = max(count, 1)
    gap = ranked[count - 1] - ranked[count] if count < len(ranked) else np.inf
    if options["remasking"] != "random":  # random confidences are exact
        margin.note(min([abs(d) for d in distances[1:]] + [gap]))  # the first is committed anyway
    elif options.get("entropy_bound") is not None:
        margin.note(min([abs(d) for d in distances[1:]], default=np.inf))
    return order[:count]


def leap(confidence, positions, options, margin):
    """LocalLeap's: the best one, the anchors, and beside an anchor those of at least the lower threshold."""
    high, low = single(options, "threshold"), single(options, "local_leap")
    best = min(range(len(positions)), key=lambda i: (-confidence[i], positions[i]))
    anchors = [p for p, c in zip(positions, confidence) if c >= high]
    chosen = [i for i, (p, c) in enumerate(zip(positions, confidence))
              if i == best or c >= high
              or c >= low and any(abs(int(p) - int(a)) <= options["local_radius"] for a in anchors)]
    if options["remasking"] != "random":
        others = [c for i, c in enumerate(confidence) if i != best]
        margin.note(min([abs(c - limit) for c in confidence for limit in (high, low)]
                        + [confidence[best] - c for c in others]))
    return chosen


# ---------------------------------------------------------------------------------------------------------------------
# TokenSkip's decision

def cosine(a, b):
    """Row by row, at most 1; 0 where either is the zero vector."""
    norms = np.sqrt(np.sum(a * a, axis=-1) * np.sum(b * b, axis=-1))
    dot = np.sum(a * b, axis=-1)
    return np.minimum(1.0, np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0))


def looks_stable(reference, states, options, margin, asked):
    """reference, states: lists of h_1..h_(K-1), each [tokens, d_model]. `asked`: tokens whose verdict will be used."""
    c = np.stack([cosine(a, b) for a, b in zip(reference, states)])  # [K-1, tokens]
    outlier = float(np.float32(options["skip_outlier"]))
    threshold = float(np.float32(options["skip_threshold"]))
    above_outlier = np.min(c, axis=0) - outlier
    above_threshold = np.mean(c, axis=0) - threshold
    stable = (above_outlier >= 0) & (above_threshold > 0)
    if threshold < 1.0:  # at 1 nothing is ever stable, however it is rounded
        smaller = np.minimum(above_outlier, above_threshold)
        for distance in np.abs(smaller[asked]):
            margin.note(distance)
    return stable


# ---------------------------------------------------------------------------------------------------------------------
# Generation

DEFAULTS = dict(gen_length=16, block_length=8, steps=16, cache="dual", threshold=None, factor=None, temperature=0.0,
                seed=0, remasking="low_confidence", eos_stop=True, skip_layer_k=0, skip_threshold=0.95,
                skip_outlier=0.7, skip_policy="reuse", skip_masked=False, skip_reference="last-step", skip_max_age=0,
                skip_full_every=0, skip_warm_start=False, skip_refresh=False)


def usage_error(options):
    """Why these options are refused, or None."""
    if options["gen_length"] % options["block_length"]:
        return "gen_length is not a multiple of block_length"
    if options["steps"] % (options["gen_length"] // options["block_length"]):
        return "steps is not a multiple of the number of blocks"
    if options["threshold"] is not None and options["factor"] is not None:
        return "threshold and factor exclude each other"
    if options.get("frechet") is not None and not 0 <= options["frechet"] <= 1:
        return "frechet is not between 0 and 1"
    if options.get("entropy_bound") is not None and options["entropy_bound"] < 0:
        return "entropy_bound is negative"
    if options.get("local_radius", 0) < 0:
        return "local_radius is negative"
    if options["skip_layer_k"] > 0 and options["cache"] != "dual":
        return "skip_layer_k needs cache dual"
    if options.get("refresh_rows", 0) > 0 and options["cache"] != "dual":
        return "refresh_rows needs cache dual"
    if options.get("refresh_every", 1) > 1 and options["cache"] == "none":
        return "refresh_every needs a cache"
    return rule_error(options) or start_error(options)


def rule_error(options):
    """The same of the rule `rows`."""
    if options.get("skip_rule") == "rows" and options["cache"] != "dual":
        return "skip_rule rows needs cache dual"
    for name in ("rows_margin", "rows_ahead"):
        if options.get(name, 0) < 0:
            return name + " is negative"
    return None


def start_error(options):
    """The same of block starts."""
    near, window = options.get("refresh") == "near", options.get("refresh_window", 0)
    for name in ("refresh_near", "refresh_window", "refresh_every"):
        if options.get(name, 0) < 0:
            return name + " is negative"
    if near and options["cache"] != "dual":
        return "refresh near needs cache dual"
    if window and options["cache"] != "dual":
        return "refresh_window needs cache dual"
    if near and options["skip_refresh"]:
        return "refresh near and skip_refresh exclude each other"
    if window and options["skip_refresh"]:
        return "refresh_window and skip_refresh exclude each other"
    if window and not near and options.get("refresh_every", 1) != 1:
        return "refresh_window with refresh full needs refresh_every 1"
    return None


class Generation:
    """One generation: canvas, cache, TokenSkip's memory, and what is counted."""

    def __init__(self, model, canvas, prompt_length, options):
        assert usage_error(options) is None
        self.model, self.options, self.prompt_length = model, options, prompt_length
        self.canvas = np.array(canvas)
        self.cache = Cache(model, len(canvas))
        self.margin = Margin()
        self.nfe = 0
        self.blocks, self.committed, self.confidences = [], [], []
        self.active, self.stable_masked = [], []
        self.computed = self.total = 0
        self.rule = options.get("skip_rule", "states" if options["skip_layer_k"] > 0 else "off")
        # TokenSkip compares h_1..h_(K-1), so it needs K of at least 2, and layers above K to leave out.
        k = options["skip_layer_k"] if self.rule != "off" else 0
        self.lower = k if 2 <= k < model.n_layers else model.n_layers
        self.may_skip = self.lower < model.n_layers
        self.upper_id = np.full(len(canvas), -1)  # the id with which each position's upper layers last ran
        self.refresh_reference = None
        self.refresh_age = np.zeros(len(canvas), dtype=int)
        self.refresh_computed = self.refresh_total = 0
        self.ran_at = np.full(len(canvas), -1)  # the pass in which each position's upper layers last ran
        self.last_confidence = np.full(len(canvas), np.nan)  # of the last pass that ran the masked row
        self.n_started = self.refreshed_rows = 0
        self.near = options.get("refresh", "full") == "near"
        self.every = options.get("refresh_every", 0 if self.near else 1)
        self.entered, self.refreshes = [], []  # each pass's rows, and which passes were refreshes

    # -- forward passes ------------------------------------------------------------------------------------------

    def record(self, name, layer, before, after):
        """Is told of everything computed (check_dump.py looks)."""

    def enter(self, positions):
        """The embeddings of the rows that a pass runs."""
        self.entered.append(positions.tolist())
        return embed(self.model, self.canvas[positions], self.record)

    def rows(self, positions):
        """A plain pass over some rows of the canvas: their h_0..h_L."""
        x = self.enter(positions)
        return [x] + run_layers(self.model, self.cache, range(self.model.n_layers), x, positions, self.record)

    def refresh(self, block, positions):
        """A block-start pass, over all attended positions or those of a near pass: the block's last hidden states."""
        if self.options["skip_refresh"] and self.may_skip:
            states, output, n_active = self.skipping_refresh(block)
        else:
            states = self.rows(positions)
            output, n_active = states[-1], len(positions)
            self.note_ran(positions)
        self.refreshes.append(self.nfe)
        self.refresh_total += len(self.canvas) * self.model.n_layers
        self.refresh_computed += self.token_layers(len(positions), n_active)
        own = np.searchsorted(positions, block)
        self.output = output[own]
        if self.options["skip_warm_start"]:
            self.reference = [h[own] for h in states[1:self.lower]]
        return self.output

    def near_positions(self, block):
        """What a near pass runs: what changed, the block, the masks that follow it, and refresh_rows."""
        known, after = self.cache.end, block[-1] + 1
        runs = self.upper_id[:known] != self.canvas[:known]
        runs[block] = True
        ahead = slice(after, min(known, after + self.options["refresh_near"]))
        runs[ahead] |= self.canvas[ahead] == self.model.mask_id
        runs[self.extra_rows(block, np.flatnonzero(runs))] = True
        return np.flatnonzero(runs)

    def note_ran(self, positions):
        self.upper_id[positions] = self.canvas[positions]
        self.ran_at[positions] = self.nfe

    def upper_rows(self, x, positions):
        """Layers K..L-1 for the active positions."""
        if len(positions) == 0:
            return x
        return run_layers(self.model, self.cache, range(self.lower, self.model.n_layers), x, positions, self.record)[-1]

    def block_step(self, block, t):
        """A dual-cache step over the block's rows, TokenSkip included: their last hidden states."""
        extra = self.extra_rows(block, block)
        rows, n = np.concatenate([block, extra]), len(block)
        x = self.enter(rows)
        states = [x] + run_layers(self.model, self.cache, range(self.lower), x, rows, self.record)
        last, compared = states[-1], [h[:n] for h in states[1:self.lower]]
        active = ~self.stable_tokens(block, compared, t)
        running = np.concatenate([active, np.ones(len(extra), dtype=bool)])
        self.count_step(block, active, self.token_layers(n, int(np.sum(active))))
        if self.may_skip:
            last[running] = self.upper_rows(last[running].copy(), rows[running])
        self.note_ran(rows[running])
        if not self.may_skip:
            return last[:n]
        output = np.where(active[:, None], last[:n], self.output)
        self.remember(compared, output, active)
        return last[:n] if self.options["skip_policy"] == "exit" else output

    def extra_rows(self, block, running):
        """refresh_rows: the stalest attended positions that are not running anyway."""
        def staleness(position):
            is_same = self.upper_id[position] == self.canvas[position]
            return (is_same, self.ran_at[position] if is_same else 0, np.min(np.abs(block - position)), position)

        outside = np.setdiff1d(np.arange(self.cache.end), running)
        chosen = sorted(outside, key=staleness)[:self.options.get("refresh_rows", 0)]
        self.refreshed_rows += len(chosen)
        return np.array(chosen, dtype=int)

    # -- the rule `rows` -----------------------------------------------------------------------------------------

    def rows_step(self, block, t):
        """A block step of the rule `rows`: the block's last hidden states, NaN where a row did not run."""
        runs = self.chosen_rows(block, t)
        rows = np.concatenate([block[runs], self.extra_rows(block, block)])
        self.count_step(block, runs, int(np.sum(runs)) * self.model.n_layers)
        output = np.full((len(block), self.model.spec["d_model"]), np.nan)
        output[runs] = self.rows(rows)[-1][:np.sum(runs)]
        self.note_ran(rows)
        return output

    def chosen_rows(self, block, t):
        """C, M and N, as flags of the block's rows."""
        full_every = self.options["skip_full_every"]
        if t == 0 or (full_every and t % full_every == 0):
            return np.ones(len(block), dtype=bool)
        changed = self.canvas[block] != self.upper_id[block]
        masked = self.canvas[block] == self.model.mask_id
        return changed | self.best_masked(block, masked, t) | self.masked_neighbours(changed, masked)

    def best_masked(self, block, masked, t):
        """M: those from which this pass may choose."""
        if not has_schedule(self.options):
            return masked
        count = self.quota(t) + self.options["rows_margin"]
        value = self.last_confidence.copy()
        if self.options["remasking"] == "random":
            value[block] = [random_confidence(self.options["seed"], int(p), self.nfe) for p in block]
        order = sorted(np.flatnonzero(masked), key=lambda i: (np.isnan(value[block[i]]), -value[block[i]], i))
        if count < len(order):
            self.margin.note(value[block[order[count - 1]]] - value[block[order[count]]])
        chosen = np.zeros(len(block), dtype=bool)
        chosen[order[:count]] = True
        return chosen

    def masked_neighbours(self, changed, masked):
        """N: the masked rows nearest to those that changed."""
        chosen, ahead = np.zeros(len(masked), dtype=bool), self.options["rows_ahead"]
        for row in np.flatnonzero(changed):
            before, after = np.flatnonzero(masked[:row]), row + 1 + np.flatnonzero(masked[row + 1:])
            chosen[before[::-1][:ahead]] = True
            chosen[after[:ahead]] = True
        return chosen

    # -- TokenSkip -----------------------------------------------------------------------------------------------

    def stable_tokens(self, block, states, t):
        options = self.options
        nobody = np.zeros(len(block), dtype=bool)
        if not self.may_skip or self.reference is None:
            return nobody
        if options["skip_full_every"] and t % options["skip_full_every"] == 0:
            return nobody
        allowed = self.canvas[block] == self.upper_id[block]
        if not options["skip_masked"]:
            allowed &= self.canvas[block] != self.model.mask_id
        if options["skip_max_age"]:
            allowed &= self.age < options["skip_max_age"]
        return allowed & looks_stable(self.reference, states, options, self.margin, allowed)

    def remember(self, states, output, active):
        first = self.reference is None
        if first or self.options["skip_reference"] == "last-step":
            self.reference = states
        else:
            self.reference = [np.where(active[:, None], new, old) for new, old in zip(states, self.reference)]
        self.output = output
        self.age = np.where(active, 0, self.age + 1)

    def count_step(self, block, active, computed):
        masked = self.canvas[block] == self.model.mask_id
        self.active.append(int(np.sum(active)))
        self.stable_masked.append(int(np.sum(~active & masked)))
        self.total += len(block) * self.model.n_layers
        self.computed += computed

    def token_layers(self, n_tokens, n_active):
        return n_tokens * self.lower + n_active * (self.model.n_layers - self.lower)

    def skipping_refresh(self, block):
        """skip_refresh: lower layers for the whole canvas, upper layers for what changed since the last refreshes."""
        everything = np.arange(len(self.canvas))
        x = self.enter(everything)
        states = [x] + run_layers(self.model, self.cache, range(self.lower), x, everything, self.record)
        active = ~self.stable_positions(block, states[1:self.lower])
        if self.refresh_reference is None:
            self.refresh_reference = states[1:self.lower]
        for old, new in zip(self.refresh_reference, states[1:self.lower]):
            old[active] = new[active]
        output = np.full_like(x, np.nan)  # nobody may read a stable position's output
        output[active] = self.upper_rows(states[-1][active], everything[active])
        self.refresh_age = np.where(active, 0, self.refresh_age + 1)
        self.note_ran(everything[active])
        return states, output, int(np.sum(active))

    def stable_positions(self, block, states):
        if self.refresh_reference is None:
            return np.zeros(len(self.canvas), dtype=bool)
        allowed = self.canvas == self.upper_id
        allowed[block] = False
        if not self.options["skip_masked"]:
            allowed &= self.canvas != self.model.mask_id
        if self.options["skip_max_age"]:
            allowed &= self.refresh_age < self.options["skip_max_age"]
        return allowed & looks_stable(self.refresh_reference, states, self.options, self.margin, allowed)

    # -- decoding ------------------------------------------------------------------------------------------------

    def block_list(self):
        """(positions, is infill): first the prompt's masks, then the blocks of the generated part."""
        holes = np.flatnonzero(self.canvas[:self.prompt_length] == self.model.mask_id)
        if len(holes):
            yield holes, True
        for start in range(self.prompt_length, len(self.canvas), self.options["block_length"]):
            yield np.arange(start, start + self.options["block_length"]), False

    def attended(self, block):
        """E: the end of what the block's passes attend to."""
        window, length = self.options.get("refresh_window", 0), len(self.canvas)
        if window == 0:
            return length
        known = np.flatnonzero(self.canvas != self.model.mask_id)
        return min(length, max([block[-1] + 1 + window, *(known[-1:] + 1)]))

    def starts_whole(self):
        """Whether the block's first pass runs all attended positions."""
        return self.n_started == 0 or (self.every > 0 and self.n_started % self.every == 0)

    def output_states(self, block, step):
        """One forward pass: the last hidden states of the block's rows."""
        if step == 0 and self.starts_whole():
            return self.refresh(block, np.arange(self.cache.end))
        if step == 0 and self.near:
            return self.refresh(block, self.near_positions(block))
        if self.options["cache"] == "none":
            return self.rows(np.arange(len(self.canvas)))[-1][block]
        if self.options["cache"] == "prefix":
            start = block[0]
            return self.rows(np.arange(start, len(self.canvas)))[-1][block - start]
        if self.rule == "rows":
            return self.rows_step(block, step)
        return self.block_step(block, step)

    def commit(self, block, output, quota):
        masked = self.canvas[block] == self.model.mask_id
        if self.rule == "rows":
            masked &= self.ran_at[block] == self.nfe
        positions = block[masked]
        logits = head(self.model, output[masked])
        x0, confidence, entropy = predict(logits, positions, self.nfe, self.model.mask_id, self.options, self.margin)
        chosen = get_transfer_index(confidence, entropy, positions, quota, self.options, self.margin)
        chosen = sorted(chosen, key=lambda i: positions[i])
        self.last_confidence[positions] = confidence
        self.canvas[positions[chosen]] = x0[chosen]
        self.committed.append([int(positions[i]) for i in chosen])
        self.confidences.append([rounded(confidence[i], 6) for i in chosen])

    def decode(self, block):
        first = self.nfe
        n_blocks = self.options["gen_length"] // self.options["block_length"]
        self.quotas = get_num_transfer_tokens(self.masks(block), self.options["steps"] // n_blocks)
        self.cache.end = self.attended(block)
        self.age = np.zeros(len(block), dtype=int)
        self.output = np.zeros((len(block), self.model.spec["d_model"]))
        self.reference = None
        while self.masks(block):
            step = self.nfe - first
            output = self.output_states(block, step)
            assert self.options["cache"] != "dual" or np.min(self.upper_id[:self.cache.end]) >= 0, "attends to no row"
            self.commit(block, output, self.quota(step))
            self.nfe += 1
        self.n_started += self.nfe > first
        self.blocks.append({"nfe": self.nfe - first, "mask_residual": self.masks(block)})

    def quota(self, step):
        """How many tokens a pass commits by schedule."""
        return max(1, self.quotas[step]) if step < len(self.quotas) else 1

    def masks(self, positions):
        return int(np.sum(self.canvas[positions] == self.model.mask_id))

    def run(self):
        finish = "length"
        for block, is_infill in self.block_list():
            self.decode(block)
            if self.options["eos_stop"] and not is_infill and self.model.eos_id in self.canvas[block]:
                finish = "eos"
                self.canvas[self.canvas == self.model.mask_id] = self.model.eos_id
                break
        return self.result(finish)

    def result(self, finish):
        assert self.masks(np.arange(len(self.canvas))) == 0
        expected = {
            "tokens": [int(i) for i in self.canvas[self.prompt_length:]],
            "canvas": [int(i) for i in self.canvas],
            "nfe": self.nfe, "mask_residual": 0, "finish_reason": finish, "blocks": self.blocks,
            "skip": {"active": self.active, "stable_masked": self.stable_masked,
                     "token_layers_computed": self.computed, "token_layers_total": self.total},
            "committed": self.committed, "confidence": self.confidences,
            "margin": rounded(self.margin.smallest, 3),
        }
        if self.options["skip_refresh"] or self.near or self.options.get("refresh_window"):
            expected["skip"]["refresh_token_layers_computed"] = self.refresh_computed
            expected["skip"]["refresh_token_layers_total"] = self.refresh_total
        if self.options.get("refresh_rows"):
            expected["refreshed_rows"] = self.refreshed_rows
        if "skip_rule" in self.options:
            expected["rows"] = self.entered
            expected["refreshes"] = [int(n in self.refreshes) for n in range(self.nfe)]
        return expected


def rounded(x, digits=9):
    return float(f"{float(x):.{digits}g}")


# ---------------------------------------------------------------------------------------------------------------------
# Generation cases. A case names what it must show (`want`); prompts are drawn until it does.

RULES = {"schedule": {}, "threshold": {"threshold": 0.7}, "factor": {"factor": 1.0}}
CACHES = ("none", "prefix", "dual")
LENGTHS = {  # prompt_length, and options
    "mha-f32": (9, dict(gen_length=16, block_length=8, steps=16)),
    "gqa-bf16": (14, dict(gen_length=24, block_length=8, steps=12)),
    "odd-f16": (5, dict(gen_length=20, block_length=10, steps=20)),
}
SKIP = dict(skip_layer_k=2, skip_threshold=0.97)


def differs(**changes):
    """The tokens would be others with these options."""
    return lambda result, rerun: result["canvas"] != rerun(changes)["canvas"]


def differs_in_active(**changes):
    return lambda result, rerun: result["skip"]["active"] != rerun(changes)["skip"]["active"]


def same(**changes):
    return lambda result, rerun: result["canvas"] == rerun(changes)["canvas"]


def several_and_single(result, rerun):
    """Some pass commits more than one token, and some pass only the best one while others wait."""
    counts = [len(c) for c in result["committed"]]
    return max(counts) > 1 and 1 in counts[:-1]


def some_but_not_all_skipped(result, rerun):
    """Among tokens that may be skipped, the cosine finds both kinds."""
    lists = [rerun({"skip_threshold": t, "skip_outlier": o})["skip"]["active"] for t, o in ((0.0, -1.0), (1.0, -1.0))]
    return result["skip"]["active"] not in lists


def ends(reason, n_blocks):
    return lambda result, rerun: result["finish_reason"] == reason and len(result["blocks"]) == n_blocks


def all_masked_stable(result, rerun):
    """From each block's second step on, only the token just committed is active."""
    return result["skip"]["active"] == [8, 1, 1, 1, 1, 1, 1] * 2


def all_of(*tests):
    return lambda result, rerun: all(test(result, rerun) for test in tests)


def anything(result, rerun):
    return True


def case(name, model, want=anything, prompt_length=None, holes=(), fixed=None, **options):
    """holes: masked indices of the prompt. fixed: {index in the generated part: token id, or None for any}."""
    usual_prompt, usual_lengths = LENGTHS[model]
    return dict(name=name, model=model, want=want, prompt_length=prompt_length or usual_prompt, holes=holes,
                fixed=fixed or {}, options={**DEFAULTS, **usual_lengths, **options})


def plain_cases():
    for model in MODELS:
        for cache in CACHES:
            for rule, options in RULES.items():
                wants = [several_and_single] if rule != "schedule" else []
                wants += [differs(cache="none")] if cache != "none" else []
                yield case(f"{model} {cache} {rule}", model, all_of(*wants), cache=cache, **options)
    for cache in CACHES:
        model = list(MODELS)[CACHES.index(cache)]
        yield case(f"temperature {cache}", model, differs(temperature=0.0), cache=cache, temperature=0.7, seed=7)
        yield case(f"random {cache}", model, differs(remasking="low_confidence"), cache=cache, remasking="random",
                   seed=2**53 - 1)
    yield case("temperature 1 threshold", "odd-f16", differs(seed=5), temperature=1.0, threshold=0.3, seed=2**32 + 5)
    yield case("temperature 0.3 factor", "mha-f32", differs(temperature=0.0), temperature=0.3, factor=1.5, seed=1)
    yield case("temperature random", "gqa-bf16", differs(seed=0), temperature=0.5, remasking="random", seed=123456789)
    yield case("random threshold", "mha-f32", several_and_single, remasking="random", threshold=0.8, seed=3)
    yield case("random factor", "odd-f16", several_and_single, remasking="random", factor=1.0, seed=4)
    yield case("threshold 0", "mha-f32", threshold=0.0)
    yield case("threshold 1", "gqa-bf16", threshold=1.0)
    yield case("threshold 0.9", "odd-f16", several_and_single, threshold=0.9)
    yield case("factor 0.5", "odd-f16", several_and_single, factor=0.5)
    yield case("factor 8 commits whole blocks", "mha-f32", factor=8.0)
    yield case("one step a block", "mha-f32", steps=2)
    yield case("uneven schedule", "odd-f16", differs(steps=20), steps=6)
    yield case("more steps than masks", "mha-f32", same(steps=16), steps=32)
    yield case("one block", "gqa-bf16", block_length=24, steps=12)
    yield case("blocks of one", "mha-f32", gen_length=6, block_length=1, steps=6)
    yield case("prompt of one token", "odd-f16", prompt_length=1)
    yield case("id beyond vocab_size", "odd-f16", lambda result, rerun: max(result["tokens"]) >= 79, threshold=0.7)


def canvas_cases():
    def hole_becomes_eos(result, rerun):
        return 62 in (result["canvas"][2], result["canvas"][5]) and result["finish_reason"] == "length"

    for cache in CACHES:
        yield case(f"eos {cache}", "mha-f32", ends("eos", 1), cache=cache, threshold=0.8)
        yield case(f"infill {cache} threshold", "mha-f32", differs(cache="none") if cache != "none" else anything,
                   cache=cache, holes=(2, 3, 6), threshold=0.7)
        yield case(f"infill {cache} schedule", "gqa-bf16", cache=cache, holes=(0, 4, 5, 6, 9, 13))
        yield case(f"fixed {cache}", "odd-f16", cache=cache, fixed={0: None, 4: None, 13: None, 19: None}, factor=1.0)
    yield case("eos in the middle", "gqa-bf16", ends("eos", 2))
    yield case("eos in the last block", "mha-f32", ends("eos", 2))
    yield case("eos stop off", "mha-f32", all_of(differs(eos_stop=True), ends("length", 2)), eos_stop=False)
    yield case("eos, fixed tokens later", "mha-f32", ends("eos", 1), fixed={9: 17, 15: 18})
    yield case("fixed eos", "odd-f16", ends("eos", 1), fixed={6: 3})
    yield case("block of fixed tokens with eos", "mha-f32", ends("eos", 1),
               fixed={i: 62 if i == 5 else None for i in range(8)})
    yield case("infill eos does not end", "mha-f32", hole_becomes_eos, holes=(2, 5))
    yield case("fixed whole block", "gqa-bf16", fixed={i: None for i in range(8, 16)}, threshold=0.7)
    yield case("infill only", "mha-f32", holes=(1, 7, 8), fixed={i: None for i in range(16)})
    yield case("nothing masked", "mha-f32", fixed={i: None for i in range(16)})
    yield case("infill and fixed", "odd-f16", holes=(1, 2, 3), fixed={2: None, 3: None, 12: None}, threshold=0.6)
    yield case("infill temperature", "gqa-bf16", holes=(3, 7, 11), temperature=0.8, seed=99, threshold=0.5)


def skip_cases():
    masked = dict(skip_masked=True, **SKIP)
    for model in MODELS:
        k = {"mha-f32": 2, "gqa-bf16": 3, "odd-f16": 2}[model]
        for rule, options in RULES.items():
            wants = [several_and_single] if rule != "schedule" else []
            wants += [some_but_not_all_skipped, differs(skip_layer_k=0)]
            yield case(f"skip {model} {rule}", model, all_of(*wants), skip_layer_k=k, skip_threshold=0.98, **options)
        for policy, other in (("reuse", "exit"), ("exit", "reuse")):
            yield case(f"skip {model} masked {policy}", model, differs(skip_policy=other), skip_masked=True,
                       skip_policy=policy, skip_layer_k=k, skip_threshold=0.97)
    yield case("skip seed defaults", "gqa-bf16", differs(skip_layer_k=0), skip_layer_k=2, threshold=0.9)
    yield case("skip exit, guard on", "mha-f32", same(skip_policy="reuse"), skip_policy="exit", **SKIP)
    yield case("skip threshold 1", "mha-f32", same(skip_layer_k=0), skip_layer_k=3, skip_threshold=1.0,
               skip_masked=True)
    yield case("skip K 1", "odd-f16", same(skip_layer_k=0), skip_layer_k=1, skip_masked=True)
    yield case("skip K = n_layers", "mha-f32", same(skip_layer_k=0), skip_layer_k=4, skip_masked=True)
    yield case("skip K > n_layers", "odd-f16", same(skip_layer_k=0), skip_layer_k=9, skip_masked=True)
    yield case("skip K = n_layers - 1", "odd-f16", some_but_not_all_skipped, skip_layer_k=4, skip_threshold=0.98)
    yield case("skip outlier", "gqa-bf16", all_of(differs(skip_outlier=0.0), some_but_not_all_skipped), skip_layer_k=4,
               skip_threshold=0.8, skip_outlier=0.93, skip_masked=True)
    yield case("skip all masked stable, reuse", "mha-f32", all_masked_stable, skip_layer_k=2, skip_threshold=0.0,
               skip_outlier=0.0, skip_masked=True)
    yield case("skip all masked stable, exit", "mha-f32", all_of(all_masked_stable, differs(skip_policy="reuse")),
               skip_layer_k=2, skip_threshold=0.0, skip_outlier=0.0, skip_masked=True, skip_policy="exit")
    yield case("skip last-computed", "mha-f32", differs(skip_reference="last-step"), skip_reference="last-computed",
               skip_layer_k=3, skip_threshold=0.98)
    yield case("skip last-computed masked", "gqa-bf16", differs(skip_reference="last-step"), **masked,
               skip_reference="last-computed")
    yield case("skip last-computed warm", "odd-f16",
               all_of(differs(skip_reference="last-step"), differs(skip_warm_start=False)), **masked,
               skip_reference="last-computed", skip_warm_start=True)
    for age in (1, 2, 3):
        yield case(f"skip max age {age}", "odd-f16", differs(skip_max_age=0), **masked, skip_max_age=age)
    yield case("skip max age, guard on", "mha-f32", differs_in_active(skip_max_age=0), **SKIP, skip_max_age=2)
    for n in (1, 2, 3):
        want = same(skip_layer_k=0) if n == 1 else differs(skip_full_every=0)
        yield case(f"skip full every {n}", "gqa-bf16", want, **masked, skip_full_every=n, steps=24)
    yield case("skip full every, max age", "mha-f32", all_of(differs(skip_full_every=0), differs(skip_max_age=0)),
               **masked, skip_full_every=4, skip_max_age=2, gen_length=32, block_length=16, steps=32)
    yield case("skip warm start", "mha-f32", differs_in_active(skip_warm_start=False), skip_warm_start=True,
               fixed={1: None, 4: None, 10: None}, skip_layer_k=2, skip_threshold=0.9)
    yield case("skip warm start masked", "odd-f16", differs(skip_warm_start=False), **masked, skip_warm_start=True)
    yield case("skip warm start, max age", "odd-f16", all_of(differs(skip_warm_start=False), differs(skip_max_age=0)),
               **masked, skip_warm_start=True, skip_max_age=3)
    yield case("skip warm start exit", "gqa-bf16", differs(skip_policy="reuse"), **masked, skip_warm_start=True,
               skip_policy="exit")
    for policy in ("reuse", "exit"):
        yield case(f"skip temperature masked {policy}", "mha-f32", differs(temperature=0.0), **masked, temperature=0.6,
                   seed=42, skip_policy=policy)
    yield case("skip random masked", "odd-f16", differs(remasking="low_confidence"), **masked, remasking="random",
               seed=8)
    yield case("skip temperature random", "gqa-bf16", differs(skip_layer_k=0), **masked, temperature=0.4, seed=6,
               remasking="random", threshold=0.8)
    yield case("skip infill", "gqa-bf16", differs(skip_layer_k=0), holes=(0, 4, 5, 6, 9, 13), **masked)
    yield case("skip infill and fixed", "mha-f32", some_but_not_all_skipped, holes=(1, 2, 6), skip_layer_k=3,
               skip_threshold=0.98, fixed={2: None, 3: None, 12: None}, threshold=0.8)
    yield case("skip eos", "mha-f32", all_of(ends("eos", 1), differs(skip_layer_k=0)), **masked)
    yield case("skip everything", "gqa-bf16", all_of(differs(skip_full_every=0), differs(skip_policy="reuse")),
               skip_layer_k=3, skip_threshold=0.9, skip_outlier=0.8, skip_policy="exit", skip_masked=True,
               skip_reference="last-computed", skip_max_age=3, skip_full_every=5, skip_warm_start=True, steps=24,
               temperature=0.2, seed=77, factor=1.0)
    yield case("skip without block steps", "mha-f32", gen_length=6, block_length=1, steps=6, **masked)


def refresh_cases():
    masked = dict(skip_masked=True, **SKIP)
    off = differs(skip_refresh=False)

    def some_refresh_skipped(result, rerun):
        return result["skip"]["refresh_token_layers_computed"] < result["skip"]["refresh_token_layers_total"]

    for model in MODELS:
        yield case(f"refresh {model}", model, off, skip_refresh=True, **SKIP)
        yield case(f"refresh {model} masked", model, off, skip_refresh=True, threshold=0.7, **masked)
    blocks = dict(gen_length=32, block_length=8, steps=32, skip_refresh=True)
    yield case("refresh several blocks", "mha-f32", off, **blocks, **SKIP)
    yield case("refresh max age 1", "mha-f32", all_of(some_refresh_skipped, differs(skip_max_age=0)), **blocks, **SKIP,
               skip_max_age=1)
    # Two passes a block: no block step has a prev, so only refreshes skip anything.
    refreshes = dict(gen_length=40, block_length=8, steps=10, skip_refresh=True)
    for age in (1, 2):
        yield case(f"refresh max age {age}, refreshes only", "odd-f16",
                   all_of(differs(skip_max_age=0), differs(skip_max_age=age + 1)), skip_max_age=age,
                   **refreshes, **SKIP)
    yield case("refresh full every", "gqa-bf16", all_of(some_refresh_skipped, differs(skip_full_every=0)), **blocks,
               **masked, skip_full_every=2)
    yield case("refresh warm last-computed", "odd-f16",
               all_of(some_refresh_skipped, differs(skip_warm_start=False), differs(skip_reference="last-step")),
               **blocks, **masked, skip_warm_start=True, skip_reference="last-computed")
    yield case("refresh threshold 1", "mha-f32", same(skip_layer_k=0), skip_layer_k=2, skip_threshold=1.0, **blocks)
    yield case("refresh K = n_layers", "mha-f32", same(skip_layer_k=0), skip_layer_k=4, **blocks)
    yield case("refresh infill", "gqa-bf16", off, skip_refresh=True, holes=(0, 4, 5, 6, 9, 13), **SKIP)
    yield case("refresh all stable", "mha-f32", off, skip_layer_k=2, skip_threshold=0.0, skip_outlier=0.0,
               skip_masked=True, **blocks)
    yield case("refresh temperature", "odd-f16", off, skip_refresh=True, temperature=0.5, seed=13, **masked)


def further_rows_cases():
    masked = dict(skip_masked=True, **SKIP)
    adds, starts = differs(refresh_rows=0), differs(refresh_every=1)
    blocks = dict(gen_length=32, block_length=8, steps=32)
    for model in MODELS:
        yield case(f"rows {model}", model, adds, refresh_rows=5, refresh_every=1)
        yield case(f"every {model}", model, starts, refresh_rows=0, refresh_every=2)
        yield case(f"rows, every {model}", model, all_of(adds, starts), **blocks, refresh_rows=4, refresh_every=3)
        yield case(f"rows, every {model} threshold", model, adds, threshold=0.7, refresh_rows=7, refresh_every=2)
        yield case(f"rows {model} whole canvas", model, same(cache="none", refresh_rows=0, refresh_every=1),
                   refresh_rows=100, refresh_every=2)
    yield case("every prefix", "gqa-bf16", starts, cache="prefix", refresh_rows=0, refresh_every=2)
    yield case("rows skip", "mha-f32", all_of(adds, differs(skip_layer_k=0)), **blocks, **masked, refresh_rows=3,
               refresh_every=2)
    yield case("rows skip exit", "gqa-bf16", adds, **masked, skip_policy="exit", refresh_rows=4, refresh_every=1)
    yield case("rows skip_refresh", "odd-f16", all_of(adds, differs(skip_refresh=False)), **blocks, **masked,
               skip_refresh=True, refresh_rows=6, refresh_every=2)
    yield case("rows infill", "gqa-bf16", all_of(adds, starts), holes=(0, 4, 5, 6, 9, 13), refresh_rows=3,
               refresh_every=2)
    yield case("every, first block fixed", "mha-f32", starts, **blocks, fixed={i: None for i in range(8)},
               refresh_rows=0, refresh_every=2)


# These name every option of the rule and of block starts.
RULE_DEFAULTS = dict(skip_rule="off", rows_margin=4, rows_ahead=0, refresh="full", refresh_near=16, refresh_window=0,
                     refresh_rows=0)
FULL = dict(refresh="full", refresh_every=1, refresh_window=0)  # as a plain dual cache starts its blocks
WHOLE = dict(cache="none", skip_rule="off", refresh_rows=0, **FULL)
BLOCKS = dict(gen_length=32, block_length=8, steps=32)


def rule_options(options):
    return {**RULE_DEFAULTS, "refresh_every": 0 if options.get("refresh") == "near" else 1, **options}


def ruled(name, model, *wants, prompt_length=None, holes=(), fixed=None, **options):
    return case(name, model, all_of(*wants), prompt_length, holes, fixed, **rule_options(options))


def same_passes(**changes):
    """Pass by pass the same, with these options."""
    def want(result, rerun):
        other = rerun(changes)
        return all(result[key] == other[key] for key in ("canvas", "committed", "confidence"))
    return want


def same_positions(**changes):
    """Each pass commits the positions that it would with these options."""
    return lambda result, rerun: result["committed"] == rerun(changes)["committed"]


def same_lengths(**changes):
    """Blocks take as many passes as with these options, as far as both get."""
    return lambda result, rerun: all(a == b for a, b in zip(result["blocks"], rerun(changes)["blocks"]))


def differs_in_rows(**changes):
    return lambda result, rerun: result["rows"] != rerun(changes)["rows"]


def passes(result):
    """(number in its block, rows, what the block's passes commit) of every pass."""
    first = 0
    for block in result["blocks"]:
        for t in range(block["nfe"]):
            yield t, result["rows"][first + t], result["committed"][first:first + block["nfe"]]
        first += block["nfe"]


def only_committed_leave(result, rerun):
    """A block's later passes run what the pass before committed, and what is masked."""
    return all(rows == sorted(sum(committed[t - 1:], [])) for t, rows, committed in passes(result) if t > 0)


def as_many_rows(margin):
    """By schedule a pass runs what the one before committed, and as many masked ones as it commits, and the margin."""
    return lambda result, rerun: all(
        len(rows) == len(committed[t - 1]) + min(len(committed[t]) + margin, sum(map(len, committed[t:])))
        for t, rows, committed in passes(result) if t > 0)


def rule_rows_cases():
    off, rows = differs(skip_rule="off"), dict(skip_rule="rows")
    first, second = dict(**rows, rows_margin=0), dict(**rows, rows_margin=1)
    for model in MODELS:
        yield ruled(f"rule {model}", model, off, same_lengths(skip_rule="off"), as_many_rows(4), **rows)
        yield ruled(f"rule {model} margin 0", model, differs(rows_margin=1), as_many_rows(0), **first)
        yield ruled(f"rule {model} margin 1", model, differs(rows_margin=4), as_many_rows(1), **second)
        yield ruled(f"rule {model} ahead 1", model, differs(rows_ahead=0), same_lengths(skip_rule="off"), **first,
                    rows_ahead=1)
        for rule in ("threshold", "factor"):
            yield ruled(f"rule {model} {rule}", model, off, several_and_single, only_committed_leave,
                        same_passes(rows_margin=0), **rows, **RULES[rule])
        yield ruled(f"rule {model} full every 1", model, same_passes(skip_rule="off"), off_without_full, **first,
                    skip_full_every=1)
    yield ruled("rule uneven", "odd-f16", off, as_many_rows(0), **first, steps=6)
    yield ruled("rule uneven, margin 1, ahead 1", "gqa-bf16", differs(rows_ahead=0), differs(rows_margin=0), **second,
                rows_ahead=1, block_length=12, steps=10)
    yield ruled("rule margin of a block", "mha-f32", off, only_committed_leave, same_passes(rows_margin=1000), **rows,
                rows_margin=8)
    yield ruled("rule margin beyond a block", "gqa-bf16", off, only_committed_leave, **rows, rows_margin=100)
    yield ruled("rule ahead 2", "mha-f32", differs(rows_ahead=1), **first, rows_ahead=2)
    yield ruled("rule ahead 2, margin 1", "odd-f16", differs(rows_ahead=1), differs(rows_margin=0), **second,
                rows_ahead=2)
    yield ruled("rule ahead a block", "odd-f16", only_committed_leave, same_passes(rows_margin=1000), **first,
                rows_ahead=10)
    yield ruled("rule more steps than masks", "mha-f32", off, same_passes(steps=16), **second, steps=32)
    yield ruled("rule one step a block", "mha-f32", same_passes(skip_rule="off"), **first, steps=2)
    yield ruled("rule one long block", "gqa-bf16", differs(rows_margin=3), **rows, rows_margin=2, block_length=24,
                steps=12)
    yield ruled("rule temperature", "mha-f32", off, differs(temperature=0.0), as_many_rows(1), **second,
                temperature=0.7, seed=7)
    yield ruled("rule temperature threshold", "odd-f16", off, differs(seed=5), **rows, temperature=1.0, threshold=0.3,
                seed=2**32 + 5)
    for model, margin in (("mha-f32", 0), ("odd-f16", 4)):  # the draws decide, so the rule does not change where
        yield ruled(f"rule random margin {margin}", model, off, same_positions(skip_rule="off"),
                    differs(remasking="low_confidence"), **rows, rows_margin=margin, remasking="random", seed=2**53 - 1)
    yield ruled("rule random temperature, ahead 1", "gqa-bf16", off, differs(rows_ahead=0), **first, rows_ahead=1,
                temperature=0.5, remasking="random", seed=123456789)
    yield ruled("rule random threshold", "mha-f32", off, several_and_single, **rows, remasking="random", threshold=0.8,
                seed=3)
    yield ruled("rule infill", "gqa-bf16", off, differs(rows_ahead=0), holes=(0, 4, 5, 6, 9, 13), **first, rows_ahead=1)
    yield ruled("rule infill threshold", "mha-f32", off, holes=(2, 3, 6), **rows, threshold=0.7)
    yield ruled("rule infill only", "mha-f32", off, as_many_rows(0), holes=(1, 4, 5, 7, 8),
                fixed={i: None for i in range(16)}, **first)
    yield ruled("rule infill and fixed", "odd-f16", off, differs(rows_ahead=0), holes=(1, 2, 3),
                fixed={2: None, 3: None, 12: None}, **second, rows_ahead=1)
    yield ruled("rule fixed", "odd-f16", off, as_many_rows(1), fixed={0: None, 4: None, 13: None, 19: None}, **second)
    yield ruled("rule eos", "mha-f32", ends("eos", 1), off, **second)
    yield ruled("rule eos in the middle", "gqa-bf16", ends("eos", 2), off, **first)
    for n, model in ((2, "mha-f32"), (3, "odd-f16")):
        yield ruled(f"rule full every {n}", model, differs(skip_full_every=0), off, **first, skip_full_every=n)
    yield ruled("rule full every 3, threshold", "gqa-bf16", differs_in_rows(skip_full_every=0), off, **rows,
                skip_full_every=3, threshold=0.9)
    yield ruled("rule refresh_rows", "mha-f32", differs(refresh_rows=0), off, **second, refresh_rows=3)
    yield ruled("rule refresh_rows, whole canvas", "odd-f16", off, **first, refresh_rows=100)
    for n, model in ((0, "mha-f32"), (2, "gqa-bf16"), (3, "odd-f16")):
        yield ruled(f"rule every {n}", model, differs(refresh_every=1), off, **second, gen_length=40, block_length=8,
                    steps=40, refresh_every=n)
    yield ruled("rule refresh_rows, every 2", "gqa-bf16", differs(refresh_rows=0), differs(refresh_every=1), off,
                **BLOCKS, **first, refresh_rows=4, refresh_every=2)
    yield ruled("rule K without skip_refresh", "mha-f32", same_passes(skip_layer_k=0), off, **second, **SKIP,
                skip_masked=True)
    for model in ("mha-f32", "gqa-bf16"):
        yield ruled(f"rule skip_refresh {model}", model, differs(skip_refresh=False), off, differs(skip_rule="states"),
                    **BLOCKS, **second, **SKIP, skip_refresh=True)
    yield ruled("rule skip_refresh masked, max age, exit", "odd-f16", differs(skip_refresh=False),
                differs(skip_masked=False), differs(skip_max_age=0), same_passes(skip_policy="reuse"),
                **{**BLOCKS, "steps": 16}, **rows, **SKIP, skip_masked=True, skip_refresh=True, skip_max_age=1,
                skip_policy="exit")
    yield ruled("rule everything", "gqa-bf16", off, differs(skip_full_every=0), differs(rows_ahead=0),
                differs(skip_refresh=False), differs(refresh_rows=0), **{**BLOCKS, "steps": 16}, **second, **SKIP,
                rows_ahead=1, skip_full_every=3, skip_refresh=True, refresh_rows=2, refresh_every=2, temperature=0.3,
                seed=77, holes=(0, 4, 5, 6))
    yield ruled("rule without block steps", "mha-f32", same_passes(skip_rule="off"), gen_length=6, block_length=1,
                steps=6, **rows)


def off_without_full(result, rerun):
    """It is skip_full_every that makes the rule do nothing."""
    return rerun({"skip_rule": "off"})["canvas"] != rerun({"skip_full_every": 0})["canvas"]


def starts(result):
    """The rows of each block's first pass."""
    return [rows for t, rows, _ in passes(result) if t == 0]


def near_cases():
    full, near = differs(**FULL), dict(refresh="near")
    for model in MODELS:
        yield ruled(f"near {model}", model, full, differs(refresh_near=0), **BLOCKS, **near, refresh_near=8)
        yield ruled(f"near {model} rows", model, full, differs(skip_rule="off"), **BLOCKS, **near, refresh_near=8,
                    skip_rule="rows", rows_margin=1)
        yield ruled(f"near {model} window", model, full, differs(refresh_window=0), **BLOCKS, **near, refresh_near=2,
                    refresh_window=3)
        yield ruled(f"near {model} window, rows, threshold", model, full, differs(skip_rule="off"),
                    differs(refresh_window=0), several_and_single, **BLOCKS, **near, refresh_near=2, refresh_window=8,
                    skip_rule="rows", **RULES["threshold"])
        yield ruled(f"near {model} states", model, full, differs(skip_rule="off"), **BLOCKS, **near, refresh_near=8,
                    skip_rule="states", **SKIP)
        yield ruled(f"near {model} whole canvas", model, same_passes(**WHOLE), differs(refresh_rows=0), **near,
                    refresh_rows=100)
        yield ruled(f"window {model}", model, differs(refresh_window=0), **BLOCKS, refresh_window=3)
    yield from near_edge_cases(full, near)
    yield from near_mixed_cases(full, near)


def near_edge_cases(full, near):
    """Sizes at their ends, and what a window has to reach."""
    def reaches_the_fixed(result, rerun):
        return all(rows[-1] == 9 + 27 for rows in starts(result)[:1]) and result["rows"][0] == list(range(9 + 28))

    def of_the_prompt(result, rerun):
        return result["rows"][0] == list(range(14 + 2)) and starts(result)[1][-1] == 14 + 8 + 1

    yield ruled("near 0", "mha-f32", full, differs(refresh_near=1), **BLOCKS, **near, refresh_near=0)
    yield ruled("near 2", "odd-f16", full, differs(refresh_near=3), **BLOCKS, **near, refresh_near=2)
    yield ruled("near all", "gqa-bf16", full, differs(refresh_near=8), same_passes(refresh_near=1000), **BLOCKS, **near,
                refresh_near=46)
    yield ruled("near all, every 1", "gqa-bf16", same_passes(**FULL), differs(refresh_every=0), **BLOCKS, **near,
                refresh_near=46, refresh_every=1)
    yield ruled("near every 2", "mha-f32", full, differs(refresh_every=0), **BLOCKS, **near, refresh_near=4,
                refresh_every=2)
    yield ruled("near every 3, rows", "odd-f16", full, differs(refresh_every=0), differs(skip_rule="off"),
                gen_length=40, block_length=8, steps=40, **near, refresh_every=3, skip_rule="rows", rows_margin=0)
    yield ruled("near one block", "gqa-bf16", same_passes(**FULL), **near, block_length=24, steps=12)
    yield ruled("near blocks of one", "mha-f32", full, same_passes(skip_rule="off"), **near, gen_length=12,
                block_length=1, steps=12, skip_rule="rows", refresh_near=3)
    yield ruled("near, first block fixed", "mha-f32", full, **BLOCKS, **near, fixed={i: None for i in range(8)})
    yield ruled("near, block of fixed tokens", "gqa-bf16", full, **BLOCKS, **near, refresh_window=2,
                fixed={i: None for i in range(8, 16)})
    yield ruled("near prompt of one token", "odd-f16", full, **BLOCKS, **near, refresh_window=4, prompt_length=1)
    yield ruled("window of a block", "gqa-bf16", differs(refresh_window=0), differs(refresh_window=7), **BLOCKS,
                refresh_window=8)
    yield ruled("window beyond the canvas", "mha-f32", same_passes(refresh_window=0), full, **BLOCKS, **near,
                refresh_window=1000)
    yield ruled("window, fixed token at the end", "odd-f16", same_passes(refresh_window=0), full, **BLOCKS, **near,
                refresh_window=3, fixed={31: None})
    yield ruled("window, fixed tokens far behind", "mha-f32", reaches_the_fixed, differs(refresh_window=0), **BLOCKS,
                **near, refresh_window=3, fixed={20: None, 27: None})
    yield ruled("window, infill", "gqa-bf16", of_the_prompt, full, differs(refresh_window=0), holes=(4, 5, 9, 13),
                **near, refresh_window=2)
    yield ruled("window full, rows", "odd-f16", differs(refresh_window=0), differs(skip_rule="off"), **BLOCKS,
                refresh_window=5, skip_rule="rows", rows_margin=2)


def near_mixed_cases(full, near):
    """Together with the other options."""
    rows = dict(skip_rule="rows", rows_margin=1)
    yield ruled("near infill", "mha-f32", full, holes=(2, 3, 6), **BLOCKS, **near, refresh_near=4)
    yield ruled("near infill and fixed, rows, window", "odd-f16", full, differs(skip_rule="off"), holes=(1, 2, 3),
                fixed={2: None, 3: None, 12: None}, **near, **rows, refresh_near=2, refresh_window=4)
    yield ruled("near refresh_rows", "mha-f32", full, differs(refresh_rows=0), **BLOCKS, **near, refresh_near=2,
                refresh_rows=3)
    yield ruled("near refresh_rows, window, rows", "gqa-bf16", full, differs(refresh_rows=0), differs(refresh_window=0),
                differs(skip_rule="off"), **BLOCKS, **near, **rows, refresh_near=2, refresh_window=4, refresh_rows=4)
    yield ruled("window full, refresh_rows", "odd-f16", differs(refresh_rows=0), differs(refresh_window=0), **BLOCKS,
                refresh_window=4, refresh_rows=5)
    yield ruled("near refresh_rows, window, whole", "odd-f16", same_passes(refresh="full", refresh_every=1),
                differs(refresh_rows=0), **BLOCKS, **near, refresh_near=0, refresh_window=4, refresh_rows=100)
    yield ruled("near factor, rows, ahead 1", "mha-f32", full, several_and_single, same_passes(rows_ahead=0), **BLOCKS,
                **near, **rows, rows_ahead=1, **RULES["factor"])
    yield ruled("near temperature", "gqa-bf16", full, differs(temperature=0.0), **BLOCKS, **near, refresh_window=6,
                temperature=0.6, seed=21)
    yield ruled("near random, rows", "odd-f16", full, same_positions(**FULL, skip_rule="off"), **BLOCKS, **near, **rows,
                remasking="random", seed=17)
    yield ruled("near uneven, rows, ahead 2", "odd-f16", full, differs(rows_ahead=0), **near, **rows, rows_ahead=2,
                gen_length=40, block_length=10, steps=12)
    yield ruled("near full every 3, rows", "mha-f32", full, differs(skip_full_every=0), **BLOCKS, **near, **rows,
                skip_full_every=3)
    yield ruled("near eos, window", "mha-f32", ends("eos", 2), full, **BLOCKS, **near, refresh_window=8)
    yield ruled("near states masked, warm", "odd-f16", full, differs(skip_warm_start=False), differs(skip_rule="off"),
                **BLOCKS, **near, refresh_near=4, skip_rule="states", skip_masked=True, skip_warm_start=True, **SKIP)
    yield ruled("near states exit, window, refresh_rows", "gqa-bf16", full, differs(skip_policy="reuse"),
                differs(refresh_rows=0), **BLOCKS, **near, refresh_window=5, refresh_rows=2, skip_rule="states",
                skip_masked=True, skip_policy="exit", **SKIP)
    yield ruled("near, K with the rule off", "mha-f32", same_passes(skip_layer_k=0), differs(skip_rule="states"),
                **BLOCKS, **near, **SKIP)


def first_canvas(case, spec, prompt_seed):
    """The prompt, then masks; holes and fixed tokens put in."""
    gen_length, mask_id = case["options"]["gen_length"], spec["mask_token_id"]
    words = draw(prompt_seed, case["prompt_length"] + gen_length, 0, 0, PROMPT)
    ids = [int(word) % spec["vocab_size"] for word in words]
    ids = [2 if i in (mask_id, spec["eos_token_id"]) else i for i in ids]
    canvas = ids[:case["prompt_length"]] + [mask_id] * gen_length
    for hole in case["holes"]:
        canvas[hole] = mask_id
    for index, token in case["fixed"].items():
        position = case["prompt_length"] + index
        canvas[position] = ids[position] if token is None else token
    return canvas


def settle(case, models):
    """Draw prompts until the case shows what it is for, with room to spare in every decision."""
    model = models[case["model"]]
    for prompt_seed in range(2000):
        canvas = first_canvas(case, model.spec, prompt_seed)

        def run(changes):
            return Generation(model, canvas, case["prompt_length"], {**case["options"], **changes}).run()

        expected = run({})
        if expected["margin"] > MIN_MARGIN and case["want"](expected, run):
            return canvas, expected
    raise AssertionError("no prompt shows: " + case["name"])


def golden_case(case, models):
    canvas, expected = settle(case, models)
    if not np.isfinite(expected["margin"]):
        expected["margin"] = None  # nothing was decided
    golden = {"name": case["name"], "model": case["model"], "prompt": canvas[:case["prompt_length"]]}
    if case["holes"] or case["fixed"]:
        golden["canvas"] = canvas
    return {**golden, "options": case["options"], "expected": expected}


REFUSED = [dict(cache="none", skip_layer_k=2), dict(cache="prefix", skip_layer_k=1), dict(gen_length=18),
           dict(steps=15), dict(threshold=0.9, factor=1.0)]


def generate_golden(models):
    usage_errors = [{"options": {**DEFAULTS, **wrong}, "why": usage_error({**DEFAULTS, **wrong})} for wrong in REFUSED]
    assert all(refused["why"] for refused in usage_errors)
    cases = [golden_case(c, models) for group in (plain_cases, canvas_cases, skip_cases) for c in group()]
    return {"made_by": MADE_BY, "min_margin": MIN_MARGIN, "cases": cases, "usage_errors": usage_errors}


TRANSFERS = {"frechet": dict(frechet=0.25), "entropy_bound": dict(entropy_bound=1.5),
             "local_leap": dict(threshold=0.7, local_leap=0.4, local_radius=2)}
TRANSFER_REFUSED = [dict(frechet=-0.1), dict(frechet=1.5), dict(entropy_bound=-1.0),
                    dict(threshold=0.9, local_leap=0.75, local_radius=-1)]


def transfer_cases():
    """The rules beside the schedule, threshold and factor, under each cache and each of TokenSkip's rules."""
    for name, rule in TRANSFERS.items():
        for cache, model in zip(CACHES, MODELS):
            yield case(f"{name} {model} {cache}", model, several_and_single, cache=cache, **rule)
        yield ruled(f"{name} rows", "mha-f32", several_and_single, only_committed_leave, skip_rule="rows", **rule)
        yield case(f"{name} states", "gqa-bf16", several_and_single, **SKIP, **rule)
        yield case(f"{name} random", "odd-f16", several_and_single, remasking="random", seed=5, **rule)
        yield case(f"{name} temperature", "mha-f32", differs(temperature=0.0), temperature=0.3, seed=9, **rule)
        yield case(f"{name} infill", "mha-f32", holes=(2, 3, 6), **rule)
    yield case("frechet 0", "odd-f16", all_of(several_and_single, differs(frechet=0.25)), frechet=0.0)
    yield case("frechet 1: one a pass", "gqa-bf16", one_a_pass, frechet=1.0)
    yield case("entropy_bound 0: one a pass", "mha-f32", one_a_pass, entropy_bound=0.0)
    yield case("entropy_bound 100: whole blocks", "odd-f16", whole_blocks, entropy_bound=100.0)
    yield case("local_leap as threshold: the threshold alone", "odd-f16",
               all_of(several_and_single, same(local_leap=None)), threshold=0.6, local_leap=0.6, local_radius=4)
    yield case("local_leap radius 0: the threshold alone", "mha-f32", same(local_leap=None), threshold=0.6,
               local_leap=0.1, local_radius=0)
    yield case("local_leap leaps", "odd-f16", differs(local_leap=None), threshold=0.6, local_leap=0.2, local_radius=4)
    yield case("local_leap radius", "odd-f16", differs(local_radius=9), threshold=0.6, local_leap=0.2, local_radius=1)


def one_a_pass(result, rerun):
    return all(len(committed) == 1 for committed in result["committed"])


def whole_blocks(result, rerun):
    return all(block["nfe"] == 1 for block in result["blocks"])


def further_rows_golden(models):
    wrong = [dict(cache="none", refresh_rows=1), dict(cache="prefix", refresh_rows=1), dict(cache="none", refresh_every=2)]
    refused = [{"options": {**DEFAULTS, **w}, "why": usage_error({**DEFAULTS, **w})} for w in wrong]
    cases = [golden_case(c, models) for c in further_rows_cases()]
    return {"made_by": MADE_BY, "min_margin": MIN_MARGIN, "cases": cases, "usage_errors": refused}


RULE_REFUSED = [dict(skip_rule="rows", cache="prefix"), dict(skip_rule="rows", cache="none"),
                dict(skip_rule="rows", rows_margin=-1), dict(skip_rule="rows", rows_ahead=-1)]
NEAR_REFUSED = [dict(refresh="near", cache="prefix"), dict(refresh="near", cache="none"),
                dict(refresh_window=8, cache="prefix"), dict(refresh_window=8, cache="none"),
                dict(refresh="near", refresh_near=-1), dict(refresh="near", refresh_window=-1),
                dict(refresh="near", refresh_every=-1), dict(refresh_window=-3), dict(refresh_every=-1),
                dict(refresh="near", skip_refresh=True, skip_rule="states", skip_layer_k=2),
                dict(refresh="near", skip_refresh=True, skip_rule="rows", skip_layer_k=2),
                dict(refresh_window=8, skip_refresh=True, skip_rule="rows", skip_layer_k=2)]


def rule_golden(models, cases, wrong):
    refused = [{**DEFAULTS, **rule_options(w)} for w in wrong]
    refused = [{"options": options, "why": usage_error(options)} for options in refused]
    assert all(r["why"] for r in refused)
    return {"made_by": MADE_BY, "min_margin": MIN_MARGIN, "cases": [golden_case(c, models) for c in cases],
            "usage_errors": refused}


def refresh_golden(models):
    return {"made_by": MADE_BY, "min_margin": MIN_MARGIN, "cases": [golden_case(c, models) for c in refresh_cases()]}


# ---------------------------------------------------------------------------------------------------------------------
# Forward passes, record by record

def record_golden(record):
    name, layer, shape_in, out = record
    golden = {"name": name, "layer": layer, "in": list(shape_in), "out": list(out.shape)}
    stats = {"mean": np.mean(out), "std": np.std(out, ddof=1), "min": np.min(out), "max": np.max(out),
             "abs_mean": np.mean(np.abs(out))}
    golden.update({key: rounded(value) for key, value in stats.items()})
    golden["first"] = [rounded(x) for x in out[0, :4]]  # of the first row, and the end of the last one
    golden["last"] = [rounded(x) for x in out[-1, -4:]]
    return golden


def rows_golden(rows):
    return [[rounded(x) for x in row] for row in rows]


def traced_pass(model, cache, ids, positions):
    """All layers for `positions`: (the golden, hidden states h_1..h_L)."""
    trace = Trace()
    x = embed(model, ids[positions], trace.add)
    states = run_layers(model, cache, range(model.n_layers), x, positions, trace.add)
    logits = head(model, states[-1], trace.add)
    golden = {"ids": ids.tolist(), "positions": positions.tolist(), "logits": rows_golden(logits),
              "records": [record_golden(r) for r in trace.records]}
    return golden, states


def skipping_pass(model, cache, ids, positions, changed, before, options):
    """A TokenSkip step after a plain pass over the same rows, whose states are `before`."""
    k, margin = options["skip_layer_k"], Margin()
    lower = run_layers(model, cache, range(k), embed(model, ids[positions]), positions)
    unchanged = np.array([p not in changed for p in positions])
    stable = unchanged & looks_stable(before[:k - 1], lower[:k - 1], options, margin, unchanged)
    active = ~stable
    assert margin.smallest > MIN_MARGIN and 0 < np.sum(stable) < np.sum(unchanged), "wants both kinds"
    reuse, exits = before[-1].copy(), lower[-1].copy()
    upper = run_layers(model, cache, range(k, model.n_layers), lower[-1][active], positions[active])
    reuse[active] = exits[active] = upper[-1]
    cosines = [cosine(a, b) for a, b in zip(before[:k - 1], lower[:k - 1])]
    return {"ids": ids.tolist(), "positions": positions.tolist(), "options": options, "cosine": rows_golden(cosines),
            "active": positions[active].tolist(), "logits_reuse": rows_golden(head(model, reuse)),
            "logits_exit": rows_golden(head(model, exits)), "margin": rounded(margin.smallest, 3)}


FORWARD_SKIP = {  # thresholds that part the tokens of the skipping pass
    "mha-f32": dict(skip_layer_k=2, skip_threshold=0.99, skip_outlier=0.7),
    "gqa-bf16": dict(skip_layer_k=3, skip_threshold=0.991, skip_outlier=0.9),
    "odd-f16": dict(skip_layer_k=3, skip_threshold=0.994, skip_outlier=0.7),
}


def forward_golden(name, model):
    """A full pass over 14 tokens; two tokens change and the rows of a scattered block run; one more changes and
    TokenSkip runs over the same rows, masked tokens not guarded. Each pass goes on with the cache of the one before."""
    words = draw(model.spec["seed"], 14, 1, 0, PROMPT)
    ids = np.array([int(word) % model.spec["vocab_size"] for word in words])
    block = np.array([3, 6, 7, 8, 10, 11, 13])
    known = ids[[6, 11, 8]]
    ids[block] = model.mask_id
    cache = Cache(model, len(ids))
    full, _ = traced_pass(model, cache, ids, np.arange(len(ids)))
    ids[[6, 11]] = known[:2]
    rows, states = traced_pass(model, cache, ids, block)
    ids[8] = known[2]
    skip = skipping_pass(model, cache, ids, block, [8], states, FORWARD_SKIP[name])
    return {"made_by": MADE_BY, "model": name, "passes": {"full": full, "block": rows, "skip": skip}}


# ---------------------------------------------------------------------------------------------------------------------
# Units

def philox_golden():
    known = [{"counter": c, "key": k, "words": w} for c, k, w in PHILOX_KNOWN]
    drawn = []
    for seed, position, forward in ((0, 0, 0), (0, 19, 1), (7, 5, 3), (2**32 + 5, 1279, 127), (2**53 - 1, 4095, 1000)):
        words = draw(seed, 10, position, forward, GUMBEL)
        word = draw(seed, 1, position, forward, CONFIDENCE)
        drawn.append({"seed": seed, "position": position, "forward": forward,
                      "gumbel_words": [int(w) for w in words], "gumbel_u": [float(u) for u in uniform(words)],
                      "confidence_word": int(word[0]), "confidence": random_confidence(seed, position, forward)})
    return {"made_by": MADE_BY, "known": known, "drawn": drawn}


def schedule_golden():
    pairs = [(0, 1), (0, 4), (1, 1), (1, 4), (3, 8), (7, 3), (8, 8), (9, 8), (10, 4), (16, 5), (31, 32), (32, 1),
             (32, 7), (32, 32), (32, 33), (64, 32), (100, 64)]
    return {"made_by": MADE_BY, "cases": [{"mask_count": m, "steps": s,
                                           "num_transfer_tokens": get_num_transfer_tokens(m, s)} for m, s in pairs]}


def row_with(top, size=8, at=2):
    """Logits whose softmax gives id `at` the probability `top` and the others equal shares."""
    row = np.zeros(size)
    row[at] = np.float32(np.log(top * (size - 1) / (1.0 - top)))
    return row.tolist()


def selection_case(name, logits, options, quota=None, positions=None, forward=0, mask_id=7, exact=False):
    """exact: the decision is a tie or an equality, which float32 meets too."""
    logits = np.asarray(logits, dtype=np.float64)
    positions = positions or list(range(20, 20 + len(logits)))
    options = {**{k: DEFAULTS[k] for k in ("threshold", "factor", "temperature", "seed", "remasking")}, **options}
    margin = Margin()
    x0, confidence, entropy = predict(logits, positions, forward, mask_id, options, margin)
    chosen = get_transfer_index(confidence, entropy, positions, quota, options, margin)
    assert exact or margin.smallest > MIN_MARGIN, name
    return {"name": name, "mask_token_id": mask_id, "forward": forward, "positions": positions, "quota": quota,
            "options": options, "logits": rows_golden(logits),
            "expected": {"x0": x0.tolist(), "confidence": [rounded(c) for c in confidence],
                         "entropy": [rounded(h) for h in entropy],
                         "committed": sorted(positions[i] for i in chosen)}}


def selection_golden():
    spread = [row_with(p) for p in (0.3, 0.95, 0.6, 0.85, 0.5)]
    equal = [row_with(0.6)] * 4
    sure = [row_with(p) for p in (0.98, 0.6, 0.95, 0.3, 0.9, 0.99)]
    flat = [0.0, 0.0, 0.0, 0.0, 5.0, 5.1, 5.25, 0.0]
    noisy = [[rounded(8 * u - 4, 6) for u in uniform(draw(5, 8, i, 0, PROMPT))] for i in range(6)]
    drawn = random_confidence(3, 21, 4)  # exactly one candidate's confidence
    c = selection_case
    cases = [
        c("quota 1", spread, {}, 1), c("quota 3", spread, {}, 3), c("quota beyond the candidates", spread, {}, 9),
        c("equal confidences: lowest positions", equal, {}, 2, exact=True),
        c("equal confidences, positions with gaps", equal, {}, 3, [4, 9, 11, 30], exact=True),
        c("equal logits: lowest id", [[1, 3, 3, 0, 3, 0, 0, 0], [2, 2, 2, 2, 2, 2, 2, 2]], {}, 1, exact=True),
        c("mask id is never chosen, stays in the denominator",
          [[0, 1, 0, 0, 0, 0, 0, 3], [0, 0, 0, 2, 0, 0, 0, 0]], {}, 1),
        c("mask id 0, the rest equal", [[5, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 4]], {}, 1, mask_id=0,
          exact=True),
        c("large logits", [[300, 100, 0, 0, 0, 0, 0, -300], [-500, -501, -502, -500.5, -600, -600, -600, -600]], {}, 1),
        c("threshold 0.7", spread, {"threshold": 0.7}), c("threshold 0.9", spread, {"threshold": 0.9}),
        c("threshold nobody reaches: the best one", spread, {"threshold": 0.99}),
        c("threshold nobody reaches, equal: the lowest position", equal, {"threshold": 0.99}, exact=True),
        c("threshold everybody reaches", spread, {"threshold": 0.1}),
        c("threshold, one candidate", spread[:1], {"threshold": 0.9}),
        c("threshold exactly met", [[0] * 8] * 5, {"threshold": drawn, "remasking": "random", "seed": 3}, forward=4,
          exact=True),
        c("factor 1", spread, {"factor": 1.0}), c("factor 0.5", spread, {"factor": 0.5}),
        c("factor 2", spread, {"factor": 2.0}), c("factor 0.01: the best one", spread, {"factor": 0.01}),
        c("factor, all but the last fit", [row_with(p) for p in (0.97, 0.96, 0.95, 0.2)], {"factor": 0.5}),
        c("factor, all fit", [row_with(p) for p in (0.97, 0.96, 0.95)], {"factor": 0.5}),
        c("random, quota 2", noisy, {"remasking": "random", "seed": 3}, 2, forward=4),
        c("random, next pass", noisy, {"remasking": "random", "seed": 3}, 2, forward=5),
        c("random, factor", noisy, {"remasking": "random", "seed": 12, "factor": 1.0}),
        c("temperature 1", noisy, {"temperature": 1.0, "seed": 7}, 2, forward=2),
        c("temperature 0.5", noisy, {"temperature": 0.5, "seed": 7}, 2, forward=2),
        c("temperature 10, high seed", noisy, {"temperature": 10.0, "seed": 2**40 + 17}, 2, forward=9),
        c("temperature 1, equal logits", [[0] * 8] * 3, {"temperature": 1.0, "seed": 1}, 1, exact=True),
        c("temperature and random", noisy, {"temperature": 1.0, "seed": 7, "remasking": "random", "threshold": 0.6}),
        c("frechet 0.25", sure, {"frechet": 0.25}), c("frechet 0.6", sure, {"frechet": 0.6}),
        c("frechet 0.9: the best one", sure, {"frechet": 0.9}), c("frechet, one candidate", sure[:1], {"frechet": 0.9}),
        c("frechet, equal", [row_with(0.95)] * 8, {"frechet": 0.27}, exact=True),  # L_n - U_n = 0.95 - 0.05 n
        c("frechet, random", noisy, {"frechet": 0.02, "remasking": "random", "seed": 12}),
        c("entropy 0: the best one", sure, {"entropy_bound": 0.0}), c("entropy 0.3", sure, {"entropy_bound": 0.3}),
        c("entropy 1", sure, {"entropy_bound": 1.0}), c("entropy 100: all", sure, {"entropy_bound": 100.0}),
        c("entropy, two modes", [flat, row_with(0.55), row_with(0.9)], {"entropy_bound": 0.8}),
        c("entropy, equal", equal, {"entropy_bound": 3.0}, exact=True),
        c("entropy, the mask counts", [[0, 9, 0, 0, 0, 0, 0, 9], [0, 9, 0, 0, 0, 0, 0, 8.5], row_with(0.9)],
          {"entropy_bound": 0.6}),
        c("entropy, temperature", noisy, {"entropy_bound": 1.5, "temperature": 1.0, "seed": 7}, forward=2),
        c("entropy, random", noisy, {"entropy_bound": 3.0, "remasking": "random", "seed": 3}, forward=4),
        c("local leap", spread, {"threshold": 0.9, "local_leap": 0.55, "local_radius": 2}),
        c("local leap, gaps", spread, {"threshold": 0.9, "local_leap": 0.4, "local_radius": 4}, None, [4, 9, 13, 14, 30]),
        c("local leap, no anchor: the best one", spread[2:], {"threshold": 0.9, "local_leap": 0.4, "local_radius": 9}),
        c("local leap, radius 0", spread, {"threshold": 0.9, "local_leap": 0.1, "local_radius": 0}),
        c("local leap, two anchors", [row_with(p) for p in (0.5, 0.92, 0.55, 0.6, 0.2, 0.57, 0.97)],
          {"threshold": 0.9, "local_leap": 0.52, "local_radius": 1}),
        c("local leap, random", noisy, {"threshold": 0.7, "local_leap": 0.4, "local_radius": 1,
                                        "remasking": "random", "seed": 12}),
    ]
    return {"made_by": MADE_BY, "cases": cases}


def cosine_case(name, reference, states, outlier, threshold, exact=False):
    """reference, states: [K-1 layers, tokens, d_model]."""
    reference, states = np.asarray(reference, dtype=np.float64), np.asarray(states, dtype=np.float64)
    options, margin = {"skip_outlier": outlier, "skip_threshold": threshold}, Margin()
    stable = looks_stable(list(reference), list(states), options, margin, np.ones(reference.shape[1], dtype=bool))
    assert exact or margin.smallest > MIN_MARGIN, name
    return {"name": name, **options, "reference": reference.tolist(), "states": states.tolist(),
            "expected": {"cosine": rows_golden([cosine(a, b) for a, b in zip(reference, states)]),
                         "stable": stable.tolist()}}


def cosine_golden():
    """Coordinates are short binary fractions, and the exact cases have cosines that float32 gives exactly."""
    a, half = [1, 0, 0, 0], [1, 1, 1, 1]  # cosine 1/2
    drawn = np.floor(64 * uniform(draw(9, 2 * 3 * 6 * 8, 0, 0, PROMPT)).reshape(2, 3, 6, 8)) / 64 - 0.5
    near = drawn[0] + drawn[1] * np.array([0, 1, 2, 4, 8, 16]).reshape(1, 6, 1) / 16
    long = np.floor(1024 * uniform(draw(10, 2 * 2 * 300, 0, 0, PROMPT)).reshape(2, 1, 2, 300)) / 1024 - 0.25
    c = cosine_case
    cases = [
        c("unchanged", [[a, half]], [[a, half]], 0.7, 0.95),
        c("length does not matter", [[a, half]], [[[3, 0, 0, 0], [8, 8, 8, 8]]], 0.7, 0.95),
        c("threshold 1: never stable", [[a, half]], [[a, half]], 0.7, 1.0, exact=True),
        c("mean equal to the threshold is not stable", [[a], [a]], [[a], [half]], 0.25, 0.75, exact=True),
        c("minimum equal to the outlier is stable", [[a], [a]], [[a], [half]], 0.5, 0.625, exact=True),
        c("minimum below the outlier", [[a], [a], [a]], [[a], [a], [half]], 0.625, 0.75),
        c("mean below the threshold", [[a], [a], [a]], [[half], [half], [a]], 0.25, 0.75),
        c("opposite and orthogonal", [[a, a]], [[[-2, 0, 0, 0], [0, 5, 0, 0]]], -0.5, -0.25),
        c("zero vectors", [[[0] * 4, a, [0] * 4]], [[a, [0] * 4, [0] * 4]], 0.7, 0.95),
        c("tokens drifting apart", drawn[0], near, 0.7, 0.95),
        c("tokens drifting apart, low bars", drawn[0], near, 0.6, 0.8),
        c("300 wide", long[0], long[1], 0.1, 0.4),
    ]
    return {"made_by": MADE_BY, "cases": cases}


# ---------------------------------------------------------------------------------------------------------------------
# Files

WIDTH = 118


def text(value, indent=0):
    """JSON for readers and diffs: short things share a line, a list of numbers is never broken."""
    line = json.dumps(value)
    plain = isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value)
    if not isinstance(value, (list, dict)) or plain or len(line) + indent <= WIDTH:
        return line
    if isinstance(value, list):
        return "[\n" + packed([text(v, indent + 1) for v in value], indent + 1) + "\n" + " " * indent + "]"
    parts = [f"{json.dumps(k)}: {text(v, indent + 1)}" for k, v in value.items()]
    return "{\n" + packed(parts, indent + 1) + "\n" + " " * indent + "}"


def packed(parts, indent):
    """Parts one below the other; neighbours of at most half a line are put side by side."""
    lines = []
    for part in parts:
        short = "\n" not in part and len(part) <= WIDTH // 2
        if short and lines and lines[-1][1] and indent + len(lines[-1][0]) + 2 + len(part) <= WIDTH:
            lines[-1] = (lines[-1][0] + ", " + part, True)
        else:
            lines.append((part, short))
    return ",\n".join(" " * indent + line for line, _ in lines)


def derive():
    """path -> bytes of everything this script makes."""
    check_philox()
    files, models = {}, {}
    for name, spec in MODELS.items():
        tensors = make_tensors(spec)
        models[name] = Model(spec, tensors)
        files.update({f"models/{name}/{path}": data for path, data in model_files(spec, tensors).items()})
    goldens = {"philox": philox_golden(), "schedule": schedule_golden(), "selection": selection_golden(),
               "cosine": cosine_golden(), "generate": generate_golden(models),
               "generate_refresh": refresh_golden(models), "generate_rows": further_rows_golden(models),
               "generate_rule_rows": rule_golden(models, rule_rows_cases(), RULE_REFUSED),
               "generate_near": rule_golden(models, near_cases(), NEAR_REFUSED),
               "generate_transfer": rule_golden(models, transfer_cases(), TRANSFER_REFUSED)}
    goldens.update({"forward_" + name: forward_golden(name, model) for name, model in models.items()})
    files.update({name + ".json": (text(golden) + "\n").encode() for name, golden in goldens.items()})
    return files


def difference(a, b, where):
    """Where two JSON values part, or None. Floats may differ in the last digits: libm is not the same everywhere."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        found = (difference(a[k], b[k], f"{where}.{k}") for k in a)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        found = (difference(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b)))
    else:
        close = isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-7 + 1e-7 * abs(b)
        margin = where.endswith(".margin") and None not in (a, b) and abs(a - b) <= 0.01 * abs(b)
        return None if a == b or close or margin else f"{where}: committed {a}, derived {b}"
    return next((d for d in found if d), None)


def check(files):
    """0 if every committed file is what the script derives."""
    wrong = 0
    for path, derived in files.items():
        try:
            committed = open(os.path.join(HERE, path), "rb").read()
        except OSError as error:
            committed, found = None, str(error)
        if committed is not None:
            is_json = path.endswith(".json")
            found = None if committed == derived else (
                difference(json.loads(committed), json.loads(derived), path) if is_json else path + ": other bytes")
        if found:
            wrong += 1
            print(found, file=sys.stderr)
    print(f"{len(files) - wrong} of {len(files)} files as derived")
    return 1 if wrong else 0


def write(files):
    for path, data in files.items():
        full = os.path.join(HERE, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        open(full, "wb").write(data)
    return 0


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    return check(derive()) if sys.argv[1:] else write(derive())


if __name__ == "__main__":
    sys.exit(main())
