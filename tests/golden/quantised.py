#!/usr/bin/env python3
"""Quantised folders, and the values that their weights stand for.

    python3 tests/golden/quantised.py            writes models/quantised/* and quantised.json beside this file
    python3 tests/golden/quantised.py --check    derives them again and compares with what is committed

Needs NumPy (Debian: python3-numpy), and reference.py beside it, whose random draws and file format it uses.

A folder is a small random model whose matrices are random codes, scales and zeros, packed as the makers of such folders
pack them. `values` reads a matrix back from the packed tensors by the layout's published formula, in float32, one
product and one difference of integers: value = scale * (code - zero). quantised.json has for each folder every
quantised matrix's first and last values, and the 64-bit FNV-1a hash of all of them as little-endian float32.

Layouts. W is [out, in], b bits, G groups of columns, words int32 filled from the lowest bits on.
  compressed-tensors  pack-quantized: X.weight_packed [out, in b/32] along the input, code + 2^(b-1); X.weight_scale
                      [out, G]; X.weight_shape; X.weight_zero_point [out b/32, G] along the output, + 2^(b-1);
                      X.weight_g_idx [in]. int-quantized: X.weight int8. float-quantized: X.weight e4m3, X.weight_scale
                      [1], [out, 1] or one for each block
  gptq                X.qweight [in b/32, out] along the input; X.qzeros [G, out b/32] along the output, v1: zero - 1;
                      X.scales [G, out]; X.g_idx [in]
  awq                 X.qweight [in, out/8], X.qzeros [G, out/8] along the output, half byte k of a word is row
                      8c + (0 2 4 6 1 3 5 7)[k]; X.scales [G, out]
  fp8 (DeepSeek)      X.weight e4m3, X.weight_scale_inv for each block: multiplied, whatever its name says
"""

import json
import os
import struct
import sys

from reference import draw, np, to_bf16_bits, uniform

HERE = os.path.dirname(os.path.abspath(__file__))
D, MLP, HEADS, VOCABULARY = 64, 96, 2, 40
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "i1", "F8_E4M3": "u1"}
MAPS = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]


def e4m3(byte):
    """float32 of an F8_E4M3 byte that is no NaN."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return np.float32(-value if byte & 128 else value)


E4M3 = np.array([e4m3(byte) if byte & 127 != 127 else 0 for byte in range(256)], dtype=np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers as they are stored: (type, array)

def floats(values, dtype):
    return (dtype, to_bf16_bits(values) if dtype == "BF16" else values.astype(NUMPY[dtype]))


def as_float32(tensor):
    dtype, array = tensor
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def pack(codes, bits):
    """Codes along the last axis to int32 words, from the lowest bits on; the last word is filled with zeros."""
    each = 32 // bits
    codes = np.concatenate([codes, np.zeros(codes.shape[:-1] + (-codes.shape[-1] % each,), codes.dtype)], axis=-1)
    words = codes.reshape(codes.shape[:-1] + (-1, each)).astype(np.uint64)
    return (words << (np.arange(each, dtype=np.uint64) * np.uint64(bits))).sum(axis=-1).astype(np.uint32).view(np.int32)


def unpack(words, bits, count):
    each = 32 // bits
    codes = words.view(np.uint32)[..., None] >> (np.arange(each, dtype=np.uint32) * np.uint32(bits))
    return (codes & np.uint32((1 << bits) - 1)).reshape(words.shape[:-1] + (-1,))[..., :count].astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# A map's tensors back to its values

def values(scheme, tensors, out, inner):
    """float32 [out, in] from the packed tensors, by the layout's formula."""
    layout, bits = scheme["layout"], scheme["bits"]
    group = np.arange(inner) // (scheme.get("group") or inner)
    if layout == "packed":
        zero = np.full((out, 1), 1 << (bits - 1))
        code = unpack(tensors["weight_packed"][1], bits, inner)
        scale = as_float32(tensors["weight_scale"])
        if "weight_g_idx" in tensors:
            group = tensors["weight_g_idx"][1]
        if "weight_zero_point" in tensors:
            zero = unpack(np.ascontiguousarray(tensors["weight_zero_point"][1].T), bits, out).T
        zero = np.broadcast_to(zero, scale.shape)
    elif layout == "gptq":
        code = unpack(np.ascontiguousarray(tensors["qweight"][1].T), bits, inner)
        zero = (unpack(tensors["qzeros"][1], bits, out).T + scheme["zero_added"]) & ((1 << bits) - 1)
        scale = as_float32(tensors["scales"]).T
        group = tensors["g_idx"][1] if "g_idx" in tensors else group
    elif layout == "awq":
        def rows(words):
            half_bytes = unpack(words, 4, words.shape[-1] * 8).reshape(words.shape + (8,))
            return half_bytes[..., np.argsort(AWQ_ORDER)].reshape(words.shape[0], -1).T
        code, zero, scale = rows(tensors["qweight"][1]), rows(tensors["qzeros"][1]), as_float32(tensors["scales"]).T
    elif layout == "bytes":
        code = tensors["weight"][1].astype(np.int64)
        scale = as_float32(tensors["weight_scale"]).reshape(-1, 1)
        zero = tensors["weight_zero_point"][1] if "weight_zero_point" in tensors else np.zeros_like(scale, np.int64)
    else:
        code = E4M3[tensors["weight"][1]]
        scale = as_float32(tensors[scheme["scales"]])
        block_rows, block_cols = scheme.get("block", (1 if scale.size > 1 else out, inner))
        scale = scale.reshape(-(-out // block_rows), -(-inner // block_cols))
        return code * scale[np.arange(out) // block_rows][:, np.arange(inner) // block_cols]
    whole = code - np.asarray(zero, dtype=np.int64)[:, group]
    return scale[:, group] * whole.astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Random maps

class Draws:
    def __init__(self, seed):
        self.seed, self.stream = seed, 0

    def uniform(self, *shape):
        self.stream += 1
        return uniform(draw(self.seed, int(np.prod(shape)), self.stream, 0, 2)).reshape(shape)

    def integers(self, low, high, *shape):
        return low + (self.uniform(*shape) * (high - low)).astype(np.int64)


def make_map(scheme, draws, out, inner):
    layout, bits = scheme["layout"], scheme["bits"]
    groups = inner // (scheme.get("group") or inner)
    types = scheme.get("scale_type", "F16")
    size = 1.0 / (inner**0.5 * 2.0 ** (bits - 2))  # values of an ordinary spread
    scale = lambda *shape: (0.5 + draws.uniform(*shape)) * size
    codes = draws.integers(0, 1 << bits, out, inner)
    order = draws.uniform(inner).argsort() // (inner // groups)  # any column in any group
    if layout == "packed":
        tensors = {"weight_packed": ("I32", pack(codes, bits)),
                   "weight_scale": floats(scale(out, groups), types),
                   "weight_shape": ("I64", np.array([out, inner]))}
        if scheme.get("zeros"):
            zeros = draws.integers(0, 1 << bits, groups, out)
            tensors["weight_zero_point"] = ("I32", np.ascontiguousarray(pack(zeros, bits).T))
        if scheme.get("ordered"):
            tensors["weight_g_idx"] = ("I32", order.astype(np.int32))
    elif layout == "gptq":
        zeros = draws.integers(0, 1 << bits, groups, out) if scheme.get("zeros") else np.full((groups, out), 7)
        tensors = {"qweight": ("I32", np.ascontiguousarray(pack(codes, bits).T)), "qzeros": ("I32", pack(zeros, bits)),
                   "scales": floats(scale(groups, out), types)}
        if scheme.get("ordered") is not None:
            tensors["g_idx"] = ("I32", (order if scheme["ordered"] else np.arange(inner) // (inner // groups))
                                .astype(np.int32))
    elif layout == "awq":
        place = lambda rows: pack(rows.reshape(rows.shape[0], -1, 8)[..., AWQ_ORDER].reshape(rows.shape), 4)
        tensors = {"qweight": ("I32", place(np.ascontiguousarray(codes.T))),
                   "qzeros": ("I32", place(draws.integers(0, 16, groups, out))),
                   "scales": floats(scale(groups, out), types)}
    elif layout == "bytes":
        tensors = {"weight": ("I8", (codes - 128).astype(np.int8)), "weight_scale": floats(scale(out, 1), types)}
        if scheme.get("zeros"):
            tensors["weight_zero_point"] = ("I8", draws.integers(-20, 20, out, 1).astype(np.int8))
    else:
        codes[codes & 127 == 127] = 0x31
        shape = {"tensor": (1,), "channel": (out, 1)}.get(scheme["scaled"])
        if scheme["scaled"] == "block":
            shape = (-(-out // scheme["block"][0]), -(-inner // scheme["block"][1]))
        tensors = {"weight": ("F8_E4M3", codes.astype(np.uint8)), scheme["scales"]: floats(scale(*shape), types)}
    return tensors


# ---------------------------------------------------------------------------------------------------------------------
# Folders: what config.json says, and the scheme of a map by its name (None: plain)

def compressed(groups, fmt, **more):
    config = {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed",
              "global_compression_ratio": None, "kv_cache_scheme": None, "ignore": [],
              "config_groups": {f"group_{i}": {"targets": targets, "input_activations": None,
                                               "output_activations": None, "weights": weights}
                                for i, (targets, weights) in enumerate(groups)}}
    config.update(more)
    return config


def ints(bits, strategy="group", group=32, **more):
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": group,
               "dynamic": False, "actorder": None, "observer": "minmax"}
    weights.update(more)
    return weights


FLOAT = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
HEAD = "model.transformer.ff_out"


def gptq(bits, group, **more):
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True,
              "lm_head": False, "checkpoint_format": "gptq"}
    config.update(more)
    return config


def packed(bits, group, **more):
    return dict(layout="packed", bits=bits, group=group, scale_type="BF16", **more)


def gptq_scheme(bits, group, **more):
    return dict(dict(layout="gptq", bits=bits, group=group, zero_added=1), **more)


def fp8_scheme(scaled, **more):
    return dict(dict(layout="fp8", bits=8, scaled=scaled, scales="weight_scale", scale_type="BF16"), **more)


def layers(scheme):
    """The scheme for all maps of layers; the head and the embedding are plain."""
    return lambda name: scheme if ".blocks." in name else None


def linear(scheme):
    return lambda name: None if name.endswith("wte") else scheme


def own_q4(name):
    """As the library's own q4: tied embedding and second map of the feed-forward network at 8 bits."""
    return packed(8, 32) if name.endswith(("wte", "ff_out")) else packed(4, 32)


def dynamic(name):
    if name.endswith("k_proj"):
        return None
    return (gptq_scheme(8, 32, ordered=False) if name.endswith("ff_out") else gptq_scheme(4, 64, ordered=False)) \
        if ".blocks." in name and not name.endswith("blocks.0.ff_out") else \
        gptq_scheme(8, None, ordered=False) if ".blocks." in name else None


FOLDERS = {
    "ct-int4": dict(seed=1, scheme=layers(packed(4, 32)),
                    config=compressed([(["Linear"], ints(4))], "pack-quantized", ignore=[HEAD])),
    "ct-int4-asymmetric": dict(seed=2, scheme=linear(packed(4, 32, zeros=True)), biases=True,
                               config=compressed([(["Linear"], ints(4, symmetric=False))], "pack-quantized")),
    "ct-int4-ordered": dict(seed=3, scheme=layers(packed(4, 32, ordered=True)),
                            config=compressed([(["re:.*blocks\\.\\d+\\.[a-z_]+$"], ints(4, actorder="group"))],
                                              "pack-quantized")),
    "ct-int8-channel": dict(seed=4, scheme=linear(packed(8, None)),
                            config=compressed([(["Linear"], ints(8, "channel", None))], "pack-quantized")),
    "ct-mixed-tied": dict(seed=5, scheme=own_q4, tied=True, config=compressed(
        [(["re:.*(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj)$"], ints(4)), (["re:.*(ff_out|wte)$"], ints(8))],
        "pack-quantized")),
    "ct-int-quantized": dict(seed=6, scheme=linear(dict(layout="bytes", bits=8, scale_type="BF16")),
                             config=compressed([(["Linear"], ints(8, "channel", None))], "int-quantized")),
    "ct-int-asymmetric": dict(seed=7, scheme=layers(dict(layout="bytes", bits=8, scale_type="F32", zeros=True)),
                              config=compressed([(["Linear"], ints(8, "channel", None, symmetric=False))],
                                                "int-quantized", ignore=["re:.*transformer\\.ff_out"])),
    "ct-fp8-tensor": dict(seed=8, scheme=layers(fp8_scheme("tensor")), config=compressed(
        [(["Linear"], dict(FLOAT, strategy="tensor"))], "float-quantized", ignore=[HEAD])),
    "ct-fp8-channel": dict(seed=9, scheme=linear(fp8_scheme("channel", scale_type="F32")), config=compressed(
        [(["Linear"], dict(FLOAT, strategy="channel"))], "float-quantized")),
    "ct-fp8-block": dict(seed=10, scheme=linear(fp8_scheme("block", block=(48, 40))), config=compressed(
        [(["Linear"], dict(FLOAT, strategy="block", block_structure=[48, 40]))], "float-quantized")),
    "fp8-block": dict(seed=11, scheme=layers(fp8_scheme("block", block=(48, 40), scales="weight_scale_inv",
                                                        scale_type="F32")),
                      config={"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                              "weight_block_size": [48, 40], "modules_to_not_convert": ["transformer.ff_out"]}),
    "gptq-v1": dict(seed=12, scheme=layers(gptq_scheme(4, 32, ordered=False)), config=gptq(4, 32)),
    "gptq-v1-zeros": dict(seed=13, scheme=layers(gptq_scheme(4, 32, zeros=True)), config=gptq(4, 32, sym=False)),
    "gptq-v2-ordered": dict(seed=14, scheme=linear(gptq_scheme(8, 32, zeros=True, ordered=True, zero_added=0)),
                            config=gptq(8, 32, checkpoint_format="gptq_v2", desc_act=True, sym=False, lm_head=True)),
    "gptq-dynamic": dict(seed=15, scheme=dynamic, layers=2, file="quantize_config.json", config=gptq(
        4, 64, dynamic={"-:.*k_proj": {}, "+:.*blocks\\.1\\.ff_out": {"bits": 8, "group_size": 32},
                        ".*\\.ff_out": {"bits": 8, "group_size": -1}, ".*\\.(ff|up)_proj$": {"bits": 4}})),
    "awq": dict(seed=16, scheme=layers(dict(layout="awq", bits=4, group=32)), config={
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True,
        "modules_to_not_convert": None}),
}


def shape_of(name):
    kind = name.rsplit(".", 1)[1]
    if kind == "wte" or name == HEAD:
        return VOCABULARY, D
    return {"ff_proj": (MLP, D), "up_proj": (MLP, D), "ff_out": (D, MLP)}.get(kind, (D, D))


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def safetensors(tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        dtype, array = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(
        np.ascontiguousarray(tensors[name][1].astype(NUMPY[tensors[name][0]])).tobytes() for name in sorted(tensors))


def make_folder(spec):
    """path -> bytes, and what quantised.json says of it."""
    draws, n_layers = Draws(1000 + spec["seed"]), spec.get("layers", 1)
    config = json.load(open(os.path.join(HERE, "llada-8b-instruct", "config.json")))
    config.update(d_model=D, n_layers=n_layers, n_heads=HEADS, n_kv_heads=HEADS, mlp_hidden_size=MLP, mlp_ratio=1,
                  vocab_size=VOCABULARY, embedding_size=VOCABULARY, max_sequence_length=64, mask_token_id=39,
                  eos_token_id=38, pad_token_id=38, weight_tying=spec.get("tied", False),
                  include_qkv_bias=spec.get("biases", False))
    maps = ["model.transformer.wte"] + [f"model.transformer.blocks.{i}.{m}" for i in range(n_layers) for m in MAPS]
    tensors, golden = {}, {}
    for name in maps + ([] if spec.get("tied") else [HEAD]):
        out, inner = shape_of(name)
        scheme = spec["scheme"](name)
        if scheme is None:
            scale = 1.0 if name.endswith("wte") else 3.0 / inner**0.5
            tensors[name + ".weight"] = floats((draws.uniform(out, inner) * 2 - 1) * scale, "BF16")
            continue
        own = make_map(scheme, draws, out, inner)
        tensors.update({f"{name}.{kind}": tensor for kind, tensor in own.items()})
        got = values(scheme, own, out, inner)
        assert got.dtype == np.float32 and got.shape == (out, inner) and np.all(np.isfinite(got))
        all_of_it = got.reshape(-1)
        golden[name] = {"first": [float(v) for v in all_of_it[:8]], "last": [float(v) for v in all_of_it[-8:]],
                        "fnv1a": f"{fnv1a(got.astype('<f4').tobytes()):016x}"}
        if spec.get("biases") and name.endswith(("q_proj", "k_proj", "v_proj")):
            tensors[name + ".bias"] = floats(draws.uniform(out) - 0.5, "BF16")
    for i in range(n_layers):
        for norm in ("attn_norm", "ff_norm"):
            tensors[f"model.transformer.blocks.{i}.{norm}.weight"] = floats(1 + draws.uniform(D) * 0.2, "BF16")
    tensors["model.transformer.ln_f.weight"] = floats(1 + draws.uniform(D) * 0.2, "BF16")
    files = {"model.safetensors": safetensors(tensors)}
    if "file" in spec:
        files[spec["file"]] = (json.dumps(spec["config"], indent=1) + "\n").encode()
    else:
        config["quantization_config"] = spec["config"]
    files["config.json"] = (json.dumps(config, indent=1) + "\n").encode()
    return files, golden


def main():
    files, goldens = {}, {}
    for name, spec in FOLDERS.items():
        folder, goldens[name] = make_folder(spec)
        files.update({os.path.join("models", "quantised", name, path): data for path, data in folder.items()})
    lines = ",\n".join(f' "{name}": {{\n' + ",\n".join(f"  {json.dumps(m)}: {json.dumps(v)}" for m, v in maps.items())
                       + "}" for name, maps in goldens.items())
    files["quantised.json"] = ('{"made_by": "python3 tests/golden/quantised.py",\n' + lines + "}\n").encode()
    if sys.argv[1:] == ["--check"]:
        stale = [path for path, data in files.items() if not os.path.exists(os.path.join(HERE, path)) or
                 open(os.path.join(HERE, path), "rb").read() != data]
        print("quantised.py: " + (f"differs: {' '.join(stale)}" if stale else f"{len(files)} files are as committed"))
        sys.exit(1 if stale else 0)
    for path, data in files.items():
        os.makedirs(os.path.dirname(os.path.join(HERE, path)), exist_ok=True)
        with open(os.path.join(HERE, path), "wb") as out:
            out.write(data)


if __name__ == "__main__":
    main()
