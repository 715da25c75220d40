"""Gemma 3n's tower for images, MobileNet-v5, and the embedder after it. Tensors have the names of timm's
model, which show the kinds of blocks. Activations are [rows, columns, channels]."""

from __future__ import annotations

import numpy as np

from .blocks import Array, gelu, rms_norm, softmax

EPS = 1e-6
Tensors = dict[str, Array]


def norm(x: Array, weight: Array) -> Array:
    return rms_norm(x, weight, EPS, 0)


def convolution(x: Array, weight: Array, stride: int, *, depthwise: bool = False) -> Array:
    """weight [out, in, k, k], or [channels, 1, k, k] for a depthwise convolution. The padding keeps
    ceil(n / stride) places."""
    kernel = weight.shape[-1]
    before, sizes = [], []
    for count in x.shape[:2]:
        sizes.append(-(-count // stride))
        total = max((sizes[-1] - 1) * stride + kernel - count, 0)
        before.append((total // 2, total - total // 2))
    padded = np.pad(x, [*before, (0, 0)])
    out = np.zeros((*sizes, len(weight)), x.dtype)
    for row in range(kernel):
        for column in range(kernel):
            seen = padded[row::stride, column::stride][: sizes[0], : sizes[1]]
            tap = weight[:, :, row, column]
            out += seen * tap[:, 0] if depthwise else seen @ tap.T
    return out


def edge(x: Array, tensors: Tensors, stride: int) -> Array:
    y = gelu(norm(convolution(x, tensors["conv_exp.weight"], stride), tensors["bn1.weight"]))
    return norm(convolution(y, tensors["conv_pwl.weight"], 1), tensors["bn2.weight"])


def inverted(x: Array, tensors: Tensors, stride: int) -> Array:
    y, middle = x, "dw_mid.conv.weight" in tensors
    if "dw_start.conv.weight" in tensors:
        start = convolution(y, tensors["dw_start.conv.weight"], 1 if middle else stride, depthwise=True)
        y = norm(start, tensors["dw_start.bn.weight"])
    y = gelu(norm(convolution(y, tensors["pw_exp.conv.weight"], 1), tensors["pw_exp.bn.weight"]))
    if middle:
        y = convolution(y, tensors["dw_mid.conv.weight"], stride, depthwise=True)
        y = gelu(norm(y, tensors["dw_mid.bn.weight"]))
    y = norm(convolution(y, tensors["pw_proj.conv.weight"], 1), tensors["pw_proj.bn.weight"])
    return y * tensors.get("layer_scale.gamma", np.float32(1))


def attention(x: Array, tensors: Tensors) -> Array:
    h = norm(x, tensors["norm.weight"])

    def projected(part: str) -> Array:
        y = h
        if f"attn.{part}.down_conv.weight" in tensors:
            y = convolution(y, tensors[f"attn.{part}.down_conv.weight"], 2, depthwise=True)
            y = norm(y, tensors[f"attn.{part}.norm.weight"])
        y = convolution(y, tensors[f"attn.{part}.proj.weight"], 1)
        return y.reshape(-1, y.shape[-1])

    k, v = projected("key"), projected("value")
    q = projected("query").reshape(-1, k.shape[-1])  # the queries of all heads
    y = (softmax(q @ k.T * x.dtype.type(k.shape[-1] ** -0.5)) @ v).reshape(*x.shape[:2], -1)
    return convolution(y, tensors["attn.output.proj.weight"], 1) * tensors["layer_scale.gamma"]


def stage(x: Array, tensors: Tensors) -> Array:
    for index in range(len({name.split(".")[0] for name in tensors})):
        own = inside(tensors, f"{index}.")
        stride = 2 if index == 0 else 1
        if "attn.query.proj.weight" in own:
            y = attention(x, own)
        else:
            y = edge(x, own, stride) if "conv_exp.weight" in own else inverted(x, own, stride)
        x = y + x if y.shape == x.shape else y
    return x


def resized(x: Array, side: int) -> Array:
    """The mean of cells, or interpolated values if the cells do not divide the sides."""
    rows, columns, channels = x.shape
    if rows % side == 0 and columns % side == 0:
        return x.reshape(side, rows // side, side, columns // side, channels).mean(axis=(1, 3))
    for axis in (0, 1):
        count = x.shape[axis]
        at = np.maximum((np.arange(side, dtype=np.float32) + 0.5) * np.float32(count / side) - 0.5, 0)
        low = np.minimum(at.astype(int), count - 1)
        share = np.expand_dims(at - low, (1 - axis, 2)).astype(x.dtype)
        high = np.minimum(low + 1, count - 1)
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


def tower(pixels: Array, tensors: Tensors, side: int) -> Array:
    """[side * side, channels] of pixels [rows, columns, 3] between 0 and 1."""
    x = convolution(pixels, tensors["conv_stem.conv.weight"], 2) + tensors["conv_stem.conv.bias"]
    x = gelu(norm(x, tensors["conv_stem.bn.weight"]))
    outputs = []
    for index in range(len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})):
        x = stage(x, inside(tensors, f"blocks.{index}."))
        outputs.append(x)
    large, small = outputs[-2:]
    rows, columns = (
        (np.arange(large.shape[i]) * (small.shape[i] / large.shape[i])).astype(int) for i in (0, 1)
    )
    joined = np.concatenate([large, small[rows][:, columns]], axis=-1)
    y = resized(inverted(joined, inside(tensors, "msfa.ffn."), 1), side)
    return norm(y, tensors["msfa.norm.weight"]).reshape(side * side, -1)


def soft_tokens(features: Array, tensors: Tensors) -> Array:
    """The input of the text model, from the tower's output and the tensors of embed_vision."""
    y = norm(features * np.float32(features.shape[-1] ** 0.5), tensors["soft_embedding_norm.weight"])
    return norm(y @ tensors["embedding_projection.weight"].T, np.float32(1))


def inside(tensors: Tensors, prefix: str) -> Tensors:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
