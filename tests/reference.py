"""A Vision Transformer and a BERT in numpy that read Hugging Face names, written from the papers.

Independent of encoders/: float64, loops over heads, its own safetensors parsing. Used to check what
encoders.load makes of a published checkpoint.
"""

import json
from math import erf, sqrt

import numpy as np


def read(path):
    """{name: float64 array} of the F32 tensors of a safetensors file."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    out = {}
    for name, entry in json.loads(data[8:8 + n]).items():
        if entry.get("dtype") == "F32":
            a, b = entry["data_offsets"]
            out[name] = np.frombuffer(data[8 + n + a:8 + n + b], "<f4").reshape(entry["shape"])
    return {k: v.astype(np.float64) for k, v in out.items()}


def layer_norm(x, w, name, eps):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * w[name + ".weight"] + w[name + ".bias"]


def linear(x, w, name):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def mixed(q, k, v, heads):
    """Attention without its projections: (T, D) each -> (T, D), head by head."""
    size, parts = q.shape[-1] // heads, []
    for h in range(heads):
        cut = slice(h * size, (h + 1) * size)
        scores = q[:, cut] @ k[:, cut].T / sqrt(size)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(p / p.sum(-1, keepdims=True) @ v[:, cut])
    return np.concatenate(parts, 1)


def attention(x, w, prefix, heads):
    q, k, v = (linear(x, w, f"{prefix}.attention.{part}") for part in ("query", "key", "value"))
    return linear(mixed(q, k, v, heads), w, f"{prefix}.output.dense")


def vit(image, w, *, heads, patch, eps, position, dinov2, mean, std):
    """CLS feature (D,) of one image (C, H, W) in [0, 1]; `position` (1 + N, D) fits its grid."""
    image = (image - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    kernel = w["embeddings.patch_embeddings.projection.weight"]
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    tokens = [w["embeddings.cls_token"][0, 0]]
    for r in range(rows):
        for c in range(columns):
            square = image[:, r * patch:(r + 1) * patch, c * patch:(c + 1) * patch]
            tokens.append((kernel * square).sum((1, 2, 3))
                          + w["embeddings.patch_embeddings.projection.bias"])
    z = np.stack(tokens) + position
    names = (("norm1", "norm2", "mlp.fc1", "mlp.fc2") if dinov2 else
             ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"))
    depth = 1 + max(int(k.split(".")[2]) for k in w if k.startswith("encoder.layer."))
    gelu = np.vectorize(lambda v: v * (1 + erf(v / sqrt(2))) / 2)
    for i in range(depth):
        norm1, norm2, fc1, fc2 = (f"encoder.layer.{i}.{n}" for n in names)
        one, two = ((w[f"encoder.layer.{i}.layer_scale{j}.lambda1"] for j in (1, 2)) if dinov2
                    else (1, 1))
        prefix = f"encoder.layer.{i}.attention"
        z = z + one * attention(layer_norm(z, w, norm1, eps), w, prefix, heads)
        z = z + two * linear(gelu(linear(layer_norm(z, w, norm2, eps), w, fc1)), w, fc2)
    return layer_norm(z, w, "layernorm", eps)[0]


def bert_attention(x, w, prefix, heads):
    q, k, v = (linear(x, w, f"{prefix}.self.{part}") for part in ("query", "key", "value"))
    return linear(mixed(q, k, v, heads), w, f"{prefix}.output.dense")


def bert(ids, segments, w, *, heads, eps):
    """Last hidden states (T, D) of one unpadded text: ids (T,), segments (T,)."""
    z = (w["embeddings.word_embeddings.weight"][ids]
         + w["embeddings.position_embeddings.weight"][:len(ids)]
         + w["embeddings.token_type_embeddings.weight"][segments])
    z = layer_norm(z, w, "embeddings.LayerNorm", eps)
    gelu = np.vectorize(lambda v: v * (1 + erf(v / sqrt(2))) / 2)
    for i in range(1 + max(int(k.split(".")[2]) for k in w if k.startswith("encoder.layer."))):
        p = f"encoder.layer.{i}"
        z = z + bert_attention(z, w, f"{p}.attention", heads)
        z = layer_norm(z, w, f"{p}.attention.output.LayerNorm", eps)
        m = gelu(linear(z, w, f"{p}.intermediate.dense"))
        z = layer_norm(z + linear(m, w, f"{p}.output.dense"), w, f"{p}.output.LayerNorm", eps)
    return z


def write(tensors, path):
    """Write {name: float32 or int64 array} as safetensors, without the padding of the header."""
    header, body = {}, b""
    for name, array in tensors.items():
        raw, kind = np.ascontiguousarray(array).tobytes(), {"f": "F32", "i": "I64"}
        header[name] = {"dtype": kind[array.dtype.kind], "shape": array.shape,
                        "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def clip_attention(x, w, prefix, heads):
    q, k, v = (linear(x, w, f"{prefix}.{part}_proj") for part in "qkv")
    return linear(mixed(q, k, v, heads), w, f"{prefix}.out_proj")


def clip(image, w, *, heads, patch, eps, mean, std):
    """CLIP's image feature (D,) before the projection, of one image (C, H, W) in [0, 1]."""
    image = (image - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    kernel, side = w["embeddings.patch_embedding.weight"], image.shape[1] // patch
    tokens = [w["embeddings.class_embedding"]]
    for r in range(side):
        for c in range(side):
            square = image[:, r * patch:(r + 1) * patch, c * patch:(c + 1) * patch]
            tokens.append((kernel * square).sum((1, 2, 3)))
    z = np.stack(tokens) + w["embeddings.position_embedding.weight"]
    z = layer_norm(z, w, "pre_layrnorm", eps)
    for i in range(1 + max(int(k.split(".")[2]) for k in w if k.startswith("encoder.layers."))):
        p = f"encoder.layers.{i}"
        z = z + clip_attention(layer_norm(z, w, f"{p}.layer_norm1", eps), w, f"{p}.self_attn",
                               heads)
        m = linear(layer_norm(z, w, f"{p}.layer_norm2", eps), w, f"{p}.mlp.fc1")
        z = z + linear(m / (1 + np.exp(-1.702 * m)), w, f"{p}.mlp.fc2")
    return layer_norm(z[0], w, "post_layernorm", eps)
