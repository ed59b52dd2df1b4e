"""Attention (opset 23)."""

from __future__ import annotations

import torch

from worker.engine.ingest.onnx.known import Operand, shapes_of
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten


def attention(site: Site) -> Operand:
    """softmax(query @ key' * scale + mask) @ value, heads in a dimension of their own or merged with the features."""
    site.must_be("softcap", 0.0)
    site.maybe_integer("qk_matmul_output_mode"), site.maybe_integer("softmax_precision")
    if any(site.optional(place) is not None for place in (4, 5, 6)):
        raise site.refuse("it goes on from keys and values of before")
    query, key, value = (site.operand(place) for place in range(3))
    heads, shared = site.maybe_integer("q_num_heads"), site.maybe_integer("kv_num_heads")
    merged = site.rank(query) == 3
    if merged:
        if not heads or not shared:
            raise site.refuse("it does not say how many heads there are")
        query, key, value = _split(site, query, heads), _split(site, key, shared), _split(site, value, shared)
    mask, causal = site.optional(3), site.flag("is_causal")
    if mask is not None and causal:
        raise site.refuse("it has a mask and is causal")
    fewer = shapes_of(query)[0][1] != shapes_of(key)[0][1]
    result = site.emit(
        _A.scaled_dot_product_attention.default,
        query,
        key,
        value,
        mask,
        0.0,
        causal,
        scale=site.maybe_real("scale"),
        enable_gqa=fewer,
    )
    if not merged:
        return result
    together = site.emit(_A.permute.default, result, [0, 2, 1, 3])
    return site.reshape(together, [(*sizes[:2], sizes[2] * sizes[3]) for sizes in shapes_of(together)])


def _split(site: Site, operand: Operand, heads: int) -> Operand:
    """[batch, time, heads * features] to [batch, heads, time, features]."""
    shapes = shapes_of(operand)
    if heads < 1 or shapes[0][2] % heads:
        raise site.refuse(f"{heads} heads do not divide {shapes[0][2]} features")
    apart = site.reshape(operand, [(*sizes[:2], heads, sizes[2] // heads) for sizes in shapes])
    return site.emit(_A.permute.default, apart, [0, 2, 1, 3])
