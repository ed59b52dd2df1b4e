"""The whole step, on data files, and its replay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.errors import Code, Failure
from models.spec import LayerInt8, QuantizeStep
from tests.engine.subjects import dataset_for, run_in, subject_of
from worker.engine.measure.compare import outputs_of, sqnr_db
from worker.engine.quantize.calibrate import Samples
from worker.engine.quantize.step import replay, run
from worker.engine.subject import Subject

STEP = QuantizeStep(step="quantize", calibration_samples=40)
SKIPPED = "skipped by `layers`"


def quantized(name: str, folder: Path, step: QuantizeStep = STEP) -> tuple[Subject, dict[str, object]]:
    subject = subject_of(name)
    return subject, run(subject, step, run_in(folder, step, data=dataset_for(subject, folder)))


def outputs(subject: Subject, batch: int = 6) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return outputs_of(subject.network()(*subject.example_inputs(batch, seed=5)))


def test_8_bit_outputs_stay_close_to_the_original(tmp_path: Path) -> None:
    subject, details = quantized("resnet18", tmp_path)
    with torch.no_grad():
        expected = outputs_of(subject.original(*subject.example_inputs(6, seed=5)))
    found = outputs(subject)
    assert 20 < sqnr_db(expected, found) < 60
    assert details["int8_layers"] == 16
    assert details["calibration_split"] == "val"
    assert details["kept_float"] == {}


def test_the_whole_range_of_weights_has_less_noise(tmp_path: Path) -> None:
    whole = QuantizeStep.model_validate(STEP.model_dump() | {"reduce_range": False})
    reduced, details = quantized("resnet18", tmp_path)
    assert details["weight_bits"] == 7
    subject = subject_of("resnet18")
    begun = run_in(tmp_path, whole, data=dataset_for(subject, tmp_path))
    assert run(subject, whole, begun)["weight_bits"] == 8
    with torch.no_grad():
        expected = outputs_of(subject.original(*subject.example_inputs(6, seed=5)))
    assert sqnr_db(expected, outputs(subject)) > sqnr_db(expected, outputs(reduced))
    largest = [int(subject.network().get_buffer(f"{name}.weight").abs().max()) for name in ("conv1", "fc")]
    assert largest == [127, 127]


def test_each_layer_has_its_noise_measured(tmp_path: Path) -> None:
    subject, details = quantized("vit", tmp_path)
    assert subject.quantization is not None
    noise = subject.quantization.sqnr_db
    assert set(noise) == set(subject.quantization.weight_scales)
    assert all(15 < value < 70 for value in noise.values())
    assert details["lowest_sqnr_db"] == min(noise.values())


def test_the_weights_left_in_the_graph_are_the_integers_times_their_scale(tmp_path: Path) -> None:
    subject, _ = quantized("mobilenet_v3", tmp_path)
    assert subject.quantization is not None
    network = subject.network()
    for name, scale in subject.quantization.weight_scales.items():
        weight = subject.graph.get_parameter(f"{name}.weight")
        integers = network.get_buffer(f"{name}.weight")
        assert integers.dtype == torch.int8
        if weight.dim() == 2:
            integers = integers.t()
        assert torch.equal(integers * scale.reshape([-1] + [1] * (weight.dim() - 1)), weight)


@pytest.mark.parametrize("name", ["resnet18", "tied_language_model", "gru"])
def test_a_replay_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    subject, _ = quantized(name, tmp_path)
    again = subject_of(name)
    replay(again, subject.records[-1])
    assert all(torch.equal(a, b) for a, b in zip(outputs(subject), outputs(again), strict=True))
    assert again.quantization is not None
    assert subject.quantization is not None
    assert again.quantization.sqnr_db == subject.quantization.sqnr_db


def test_a_replay_on_another_networks_weights_takes_the_stored_ones(tmp_path: Path) -> None:
    """As a checkpoint does: replay first, then every tensor of the graph."""
    subject, _ = quantized("resnet18", tmp_path)
    again = subject_of("resnet18")
    with torch.no_grad():
        again.graph.get_parameter("conv1.weight").mul_(3.0)
    replay(again, subject.records[-1])
    again.graph.load_state_dict(subject.graph.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(outputs(subject), outputs(again), strict=True))


def test_the_original_is_not_touched(tmp_path: Path) -> None:
    before = subject_of("resnet18").original.state_dict()
    subject, _ = quantized("resnet18", tmp_path)
    after = subject.original.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_data_is_refused(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    with pytest.raises(Failure) as caught:
        run(subject, STEP, run_in(tmp_path, STEP))
    assert caught.value.code == Code.DATASET_BAD
    assert "labels are not needed" in caught.value.message


def test_nothing_left_to_quantize_is_refused(tmp_path: Path) -> None:
    step = QuantizeStep(step="quantize", layers=[LayerInt8(match="*", skip=True)])
    with pytest.raises(Failure) as caught:
        quantized("vgg", tmp_path, step)
    assert caught.value.code == Code.UNSUPPORTED_OP
    assert "skipped by `layers`" in caught.value.message
    assert "floating point" not in caught.value.message


def test_values_that_overflow_on_a_calibration_sample_are_refused(tmp_path: Path) -> None:
    subject = subject_of("vgg")
    with torch.no_grad():
        subject.graph.get_parameter("features.0.weight").mul_(1e38)
        subject.graph.get_parameter("features.3.weight").mul_(1e38)
    with pytest.raises(Failure) as caught:
        run(subject, STEP, run_in(tmp_path, STEP, data=dataset_for(subject, tmp_path)))
    assert caught.value.code == Code.DATASET_BAD
    assert "not finite" in caught.value.message


def test_what_the_outputs_of_held_out_samples_say_decides_the_ranges(tmp_path: Path) -> None:
    few = STEP.model_copy(update={"calibration_samples": 6})
    step = few.model_copy(update={"ranges": "auto"})
    subject, details = quantized("vgg", tmp_path, step)
    tried = details["ranges_sqnr_db"]
    assert isinstance(tried, dict)
    assert list(tried) == ["minmax", "entropy", "percentile", "mse"]
    assert tried[details["ranges"]] == max(tried.values())
    assert len(set(tried.values())) > 1
    alone, _ = quantized("vgg", tmp_path, few.model_copy(update={"ranges": details["ranges"]}))
    assert all(torch.equal(a, b) for a, b in zip(outputs(subject), outputs(alone), strict=True))


def test_held_out_samples_are_none_of_those_calibrated_on(tmp_path: Path) -> None:
    subject = subject_of("vgg")
    begun = run_in(tmp_path, STEP, data=dataset_for(subject, tmp_path, 300))
    assert begun.data is not None
    for count in (1, 10, 1000):
        drawn = Samples.drawn(begun, count, decide=True)
        assert len(drawn.held_out) >= 1
        assert len(drawn.calibration) >= 1
        assert not set(drawn.held_out.rows.tolist()) & set(drawn.calibration.rows.tolist())
    whole = Samples.drawn(begun, 1000, decide=False)
    assert (len(whole.calibration), len(whole.held_out)) == (len(begun.data.val), 0)


def test_a_layer_may_have_ranges_of_its_own(tmp_path: Path) -> None:
    own = [
        LayerInt8(match="conv1", symmetric=True),
        LayerInt8(match="fc", ranges="mse", weight_ranges="mse"),
        LayerInt8(match="layer?.0.conv1", skip=True),
        LayerInt8(match="layer1.*", ranges="percentile"),
    ]
    subject, details = quantized("resnet18", tmp_path, STEP.model_copy(update={"layers": own, "percentile": 90.0}))
    plain, _ = quantized("resnet18", tmp_path)
    assert subject.quantization is not None
    assert plain.quantization is not None
    assert details["kept_float"] == dict.fromkeys(["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"], SKIPPED)
    read = {node.target: str(node.args[0]) for node in subject.graph.graph.nodes if node.op == "call_module"}
    own_grid, grid = subject.quantization.activations, plain.quantization.activations
    assert own_grid[read["conv1"]].zero_point == 128
    assert own_grid[read["layer1.1.conv2"]].scale < 0.8 * grid[read["layer1.1.conv2"]].scale
    assert own_grid[read["layer2.1.conv2"]].scale == grid[read["layer2.1.conv2"]].scale
    assert bool((subject.quantization.weight_scales["fc"] <= plain.quantization.weight_scales["fc"]).all())
