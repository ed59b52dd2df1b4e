"""Each way to store a weight in few bits, against its formula; and that the same bits come back everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.lowbit_policy import Coding
from worker.engine.graph.coded import Coded, StoredCodes, pack, packed_bytes, unpack
from worker.engine.lowbit.encode import Grid, encode_codebook
from worker.engine.lowbit.learn import learning
from worker.engine.measure.unpack import CODECS

HALF = 2.0**-11
"""How far half precision is from a number, relative to it."""

CODINGS = {
    "int4": Coding("integers", bits=4, group_size=6, range="mse"),
    "int4, a scale an output": Coding("integers", bits=4),
    "int2": Coding("integers", bits=2, group_size=5),
    "int3 with zero points": Coding("integers", bits=3, group_size=10, symmetric=False),
    "int5": Coding("integers", bits=5, group_size=4),
    "int6 with zero points": Coding("integers", bits=6, symmetric=False, range="mse"),
    "int8": Coding("integers", bits=8),
    "ternary": Coding("ternary"),
    "binary": Coding("binary"),
    "codebook of 3 bits": Coding("codebook", bits=3),
    "codebook of 5 bits for pairs": Coding("codebook", bits=5, dimension=2),
    "codebook of 7 bits for triples": Coding("codebook", bits=7, dimension=3),
}


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def encoded(coding: Coding, values: Tensor) -> Coded:
    return learning(values, coding, 0, None).coded()


def test_ternary_is_that_of_its_paper() -> None:
    """Li and Liu, 2016, equations 5 and 6: beyond 0.7 of the mean magnitude, and the mean of those."""
    values = weight(3, 2, 3, 3)
    found = encoded(Coding("ternary"), values).values()
    for row, mine in zip(values.flatten(1).tolist(), found.flatten(1).tolist(), strict=True):
        threshold = 0.7 * sum(map(abs, row)) / len(row)
        kept = [abs(value) for value in row if abs(value) > threshold]
        scale = sum(kept) / len(kept)
        expected = [math.copysign(scale, value) if abs(value) > threshold else 0.0 for value in row]
        assert mine == pytest.approx(expected, rel=HALF)


def test_binary_is_that_of_its_paper() -> None:
    """Rastegari et al., 2016, equation 6: the sign times the mean magnitude of an output."""
    values = weight(4, 11)
    values[0, 0] = 0.0
    found = encoded(Coding("binary"), values).values()
    signs = torch.where(values >= 0, 1.0, -1.0)
    torch.testing.assert_close(found, signs * values.abs().mean(1, keepdim=True), rtol=HALF, atol=0)


def test_binary_loses_least_of_all_scales() -> None:
    values = weight(1, 50)
    scale = float(encoded(Coding("binary"), values).values().abs().max())

    def loss(each: float) -> float:
        return float((values - values.sign() * each).square().sum())

    assert all(loss(scale) <= loss(scale * factor) for factor in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_symmetric_integers_round_to_the_nearest_of_a_grid(bits: int) -> None:
    values = weight(3, 20)
    coded = encoded(Coding("integers", bits=bits, group_size=8), values)
    assert coded.tables["scale"].shape == (9,)
    for row in range(3):
        for begin in (0, 8, 16):
            group = values[row, begin : begin + 8].tolist()
            step = max(map(abs, group)) / (2 ** (bits - 1) - 1)
            for value, mine in zip(group, coded.values()[row, begin : begin + 8].tolist(), strict=True):
                assert mine / step == pytest.approx(round(mine / step), abs=2 ** (bits - 1) * HALF)
                assert abs(mine - value) <= step * (0.5 + 2**bits * HALF)


def test_a_zero_point_takes_in_a_range_to_one_side() -> None:
    values = weight(4, 32).abs() + 1.0
    one_sided = encoded(Coding("integers", bits=4, symmetric=False), values).values()
    symmetric = encoded(Coding("integers", bits=4), values).values()
    step = values.amax(1, keepdim=True) / 15
    assert bool(((one_sided - values).abs() <= step * 0.51).all())
    assert float((one_sided - values).square().sum()) < 0.5 * float((symmetric - values).square().sum())


def test_the_range_of_least_loss_loses_less_than_the_extremes() -> None:
    values = weight(8, 64)
    values[:, 0] = 1.0
    losses = [
        (encoded(Coding("integers", bits=3, group_size=32, range=kind), values).values() - values).square().sum(1)
        for kind in ("mse", "minmax")
    ]
    assert bool((losses[0] <= losses[1]).all())
    assert float(losses[0].sum()) < 0.9 * float(losses[1].sum())


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 7), (6, 1)])
def test_the_same_bits_come_back_everywhere(name: str, shape: tuple[int, ...]) -> None:
    values = weight(*shape)
    values[0] = 0.0
    source = learning(values, CODINGS[name], 0, None)
    coded = source.coded()
    expected = coded.values()
    assert expected.shape == shape
    with torch.no_grad():
        assert torch.equal(source(), expected), "what is trained is what is delivered"
    assert torch.equal(StoredCodes(coded)(), expected)
    assert coded.stored_bytes() == CODINGS[name].stored_bytes(shape)
    assert coded.packed().numel() == packed_bytes(coded.codes.numel(), coded.levels)
    again = Coded.of(coded.settings(), coded.tensors())
    assert torch.equal(again.values(), expected)
    row: dict[str, Any] = {
        **coded.settings(),
        "count": coded.codes.numel(),
        "items": values.numel(),
        "dimension": CODINGS[name].dimension,
    }
    parts = {key: table.numpy().reshape(-1).view(np.uint8) for key, table in coded.tables.items()}
    codec = CODECS["grid" if coded.is_grid else "codebook"]
    for stored, in_bytes in ((coded.packed(), False), (coded.codes, True)):
        found = codec.decode({**parts, "codes": stored.numpy()}, row | {"in_bytes": in_bytes})
        assert found == expected.numpy().tobytes()


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_packing_takes_the_bits_it_needs(levels: int, count: int) -> None:
    codes = torch.randint(levels, (count,), generator=torch.Generator().manual_seed(levels)).to(torch.uint8)
    packed = pack(codes, levels)
    assert torch.equal(unpack(packed, levels, count), codes.to(torch.int32))
    bits = (levels - 1).bit_length()
    if levels == 3:
        groups = [codes[begin : begin + 5].tolist() for begin in range(0, count, 5)]
        assert packed.tolist() == [sum(digit * 3**place for place, digit in enumerate(group)) for group in groups]
    else:
        number = sum(code << bits * place for place, code in enumerate(codes.tolist()))
        assert bytes(packed.tolist()) == number.to_bytes(math.ceil(count * bits / 8), "little")


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e-4, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("name", ["int8", "int6 with zero points", "ternary", "binary"])
def test_weights_of_any_magnitude_are_stored(name: str, magnitude: float) -> None:
    values = weight(4, 40)
    plain = encoded(CODINGS[name], values).values()
    scaled = encoded(CODINGS[name], values * magnitude).values()
    assert bool(torch.isfinite(scaled).all())
    lost, lost_of_plain = ((found - values).square().sum() for found in (scaled / magnitude, plain))
    if magnitude > 1e-15:
        assert float(lost) == pytest.approx(float(lost_of_plain), rel=0.02)


def test_zeros_alone_are_stored() -> None:
    for name, coding in CODINGS.items():
        if coding.scheme != "binary":
            assert not encoded(coding, torch.zeros(3, 8)).values().any(), name


@pytest.mark.parametrize(
    "coding",
    [coding for coding in CODINGS.values() if coding.scheme != "binary" and coding.dimension == 1],
    ids=lambda coding: coding.scheme,
)
def test_what_is_masked_stays_zero(coding: Coding) -> None:
    values = weight(4, 30)
    mask = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    source = learning(values * mask, coding, 0, mask)
    found = source.coded().values()
    assert not found[~mask].any()
    assert not found[~mask].signbit().any()
    assert found[mask].any()


def test_a_codebook_has_a_zero_for_what_is_masked_even_with_one_bit() -> None:
    values = weight(1, 9)
    mask = torch.arange(9).reshape(1, 9) % 2 == 0
    coded = encode_codebook(values * mask, Coding("codebook", bits=1), 0, mask)
    assert coded.tables["codebook"][0] == 0
    assert not coded.values()[~mask].any()


def test_gradients_go_straight_through_to_the_latent_weight() -> None:
    source = learning(weight(3, 5), Coding("ternary"), 0, None)
    factor = weight(3, 5, seed=1)
    torch.autograd.backward((source() * factor).sum())
    (latent,) = source.parameters()
    assert latent.grad is not None
    assert torch.equal(latent.grad, factor)


def test_gradients_of_a_codebook_add_up_over_its_weights() -> None:
    """Han et al., 2016, equation 3."""
    source = learning(weight(3, 5), Coding("codebook", bits=2), 0, None)
    factor = weight(3, 5, seed=1)
    torch.autograd.backward((source() * factor).sum())
    (codebook,) = source.parameters()
    assert codebook.grad is not None
    codes = source.coded().codes
    expected = [float(factor.flatten()[codes == place].sum()) for place in range(4)]
    assert codebook.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_the_clips_are_of_the_weight_from_before_training() -> None:
    grid = Grid(Coding("integers", bits=4, group_size=4, range="mse"), (2, 8))
    values = weight(2, 8)
    assert grid.fit(values).shape == (2, 2)
    assert bool((grid.fit(values) <= 1).all())
