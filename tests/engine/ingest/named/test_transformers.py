from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import Code, Failure
from models.reading import ReadOptions
from tests.engine.ingest.named.folders import pack, small_network, zipped
from worker.engine.graph.lift import lift
from worker.engine.ingest.named.classes import CLASSES
from worker.engine.ingest.program import Program
from worker.engine.ingest.read import read_network

TRANSFORMERS = ReadOptions(arch="transformers")
TRIED = (
    *("BertForSequenceClassification", "DistilBertForTokenClassification", "RobertaForQuestionAnswering"),
    *("AlbertForMaskedLM", "MPNetModel", "ElectraModel", "GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2Model"),
    *("T5ForConditionalGeneration", "ViTForImageClassification", "SwinModel", "ConvNextForImageClassification"),
    *("ResNetModel", "Wav2Vec2ForCTC", "HubertForSequenceClassification"),
)
"""One of each family at least; the heads of a family differ by a layer."""


def _options(name: str) -> ReadOptions:
    shapes = {"_two_sequences": ("1,12",), "_sound": ("1,600",)}.get(CLASSES[name].shapes.__name__, ())
    return ReadOptions(arch="transformers", input_shape=shapes)


def _outputs(program: Program, module: Any) -> tuple[Any, Any]:
    subject = lift(program)
    inputs = subject.example_inputs(3)
    named = {info.name: value for info, value in zip(subject.inputs, inputs, strict=True)}
    with torch.no_grad():
        return subject.graph(*inputs), module(**named, return_dict=True)


@pytest.mark.parametrize("name", TRIED)
def test_a_zipped_folder_is_the_network_bit_for_bit(name: str, tmp_path: Path) -> None:
    changes = {"num_labels": 2} if "QuestionAnswering" in name else {}
    module = small_network(name, **changes)
    program = read_network(zipped(module, tmp_path / "net"), _options(name))
    assert (program.format, program.warnings) == ("transformers", ())
    assert [info.name for info in program.outputs] == list(CLASSES[name].outputs)
    assert all(info.shape[0] is None for info in (*program.inputs, *program.outputs))
    got, wanted = _outputs(program, module)
    assert all(torch.equal(got[output], wanted[output]) for output in CLASSES[name].outputs)


def test_shards_without_a_root_folder_are_the_same_network(tmp_path: Path) -> None:
    module = small_network("BertModel")
    path = zipped(module, tmp_path / "net", root="", shard_size="50KB")
    assert sum(name.endswith(".safetensors") for name in zipfile.ZipFile(path).namelist()) == 2
    got, wanted = _outputs(read_network(path, TRANSFORMERS), module)
    assert torch.equal(got["last_hidden_state"], wanted["last_hidden_state"])


def test_the_length_of_a_sequence_is_what_is_said_or_what_the_network_has(tmp_path: Path) -> None:
    path = zipped(small_network("BertModel"), tmp_path / "net")
    assert read_network(path, TRANSFORMERS).inputs[0].shape == [None, 24]
    shorter = ReadOptions(arch="transformers/BertModel", input_shape=("1,9",))
    assert [info.shape for info in read_network(path, shorter).inputs] == [[None, 9], [None, 9]]


def test_a_class_may_be_named_where_the_folder_does_not(tmp_path: Path) -> None:
    path = zipped(small_network("BertModel"), tmp_path / "net", architectures=...)
    with pytest.raises(Failure, match="say `arch=transformers/<class>`"):
        read_network(path, TRANSFORMERS)
    assert read_network(path, ReadOptions(arch="transformers/BertModel")).format == "transformers"


def test_weights_in_half_precision_are_computed_in_float32(tmp_path: Path) -> None:
    module = small_network("GPT2Model").half()
    program = read_network(zipped(module, tmp_path / "net"), TRANSFORMERS)
    assert [notice.code for notice in program.warnings] == ["converted_to_float32"]
    assert {program.tensors[name].dtype for name in program.parameters} == {torch.float32}
    assert torch.equal(program.tensors["wte.weight"], module.wte.weight.float())


def _code_in_config(folder: Path, **entries: Any) -> Path:
    return zipped(small_network("BertModel"), folder / "net", **entries)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "auto_map": ({"auto_map": {"AutoModel": "model.Net"}}, "names Python code"),
    "remote": ({"trust_remote_code": True}, "run code"),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "before"),
    "inner": ({"text_config": {"auto_map": {"AutoConfig": "x.Y"}}}, "`auto_map`"),
    "kernels": ({"use_kernels": True}, "code from elsewhere"),
    "attention": ({"_attn_implementation": "kernels-community/flash-attn"}, "`_attn_implementation`"),
    "another_class": ({"architectures": ["NetForEverything"]}, "not among the classes"),
    "another_type": ({"model_type": "gpt2"}, "not of BertModel"),
    "activation": ({"hidden_act": "os.system"}, "cannot build BertModel"),
    "text_for_number": ({"hidden_size": "32; import os"}, "transformers"),
    "heads": ({"num_attention_heads": 5}, "transformers cannot build BertModel"),
    "wider": ({"intermediate_size": 64}, "of another shape"),
    "deeper": ({"num_hidden_layers": 3}, "missing: 'encoder.layer.2.attention"),
    "shallower": ({"num_hidden_layers": 1}, "that it does not have: 'encoder.layer.1.attention"),
    "very_deep": ({"num_hidden_layers": 10**9}, "the files hold"),
    "very_wide": ({"hidden_size": 4 * 10**6, "num_attention_heads": 4}, "parameters, the files hold"),
    "long": ({"max_position_embeddings": 10**10}, "parameters, the files hold"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_does_not_fit_or_names_code_is_refused(name: str, tmp_path: Path) -> None:
    entries, says = CONFIGS[name]
    path = _code_in_config(tmp_path, **entries)
    with pytest.raises(Failure) as caught:
        read_network(path, TRANSFORMERS)
    assert caught.value.code == Code.NETWORK_REJECTED
    assert says in caught.value.message


def _with_file(name: str, content: bytes = b"x") -> Any:
    return lambda folder: (folder / name).write_bytes(content)


def _without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _moved_in_index(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "../../etc/passwd"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _integers(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    save_file({k: v.to(torch.int8) if v.dim() == 2 else v for k, v in load_file(file).items()}, file)


def _doubled(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))
    save_file({**load_file(first), **load_file(second)}, second)


FOLDERS = {
    "code": (_with_file("modeling_net.py"), "code, which is never run"),
    "pickle": (_with_file("pytorch_model.bin"), "not safetensors"),
    "adapter": (_with_file("adapter_config.json", b"{}"), "merge_and_unload"),
    "no_config": (_without("config.json"), "no config.json"),
    "config_is_no_json": (_with_file("config.json", b"[" * 100_000), "not JSON"),
    "config_is_a_list": (_with_file("config.json", b"[]"), "one JSON object"),
    "shard_gone": (_without("model-00002-of-00002.safetensors"), "should be in 'model-00002"),
    "index_gone": (_without("model.safetensors.index.json"), "no model.safetensors.index.json"),
    "index_points_out": (_moved_in_index, "should be in '../../etc/passwd'"),
    "in_two_shards": (_doubled, "is in model-00001"),
    "shard_broken": (_with_file("model-00001-of-00002.safetensors", bytes(40)), "not a whole safetensors file"),
    "quantized": (_integers, "before it was quantized"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_whole_or_holds_code_is_refused(name: str, tmp_path: Path) -> None:
    change, says = FOLDERS[name]
    small_network("BertModel").save_pretrained(tmp_path / "net", max_shard_size="50KB")
    change(tmp_path / "net")
    with pytest.raises(Failure) as caught:
        read_network(pack(tmp_path / "net", tmp_path / "net.zip"), TRANSFORMERS)
    assert caught.value.code == Code.NETWORK_REJECTED
    assert says in caught.value.message


def test_a_compressed_folder_is_refused_with_how_to_pack_it(tmp_path: Path) -> None:
    small_network("BertModel").save_pretrained(tmp_path / "net")
    with pytest.raises(Failure, match="zip -0 -r") as caught:
        read_network(pack(tmp_path / "net", tmp_path / "net.zip", compression=zipfile.ZIP_DEFLATED), TRANSFORMERS)
    assert caught.value.code == Code.COMPRESSED_RECORD


def test_an_input_that_the_class_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    path = zipped(small_network("BertModel"), tmp_path / "net")
    for shape, says in (("pixels:1,8", "input_ids, attention_mask"), ("1,3,8,8", "2 dimensions")):
        with pytest.raises(Failure, match=says):
            read_network(path, ReadOptions(arch="transformers", input_shape=(shape,)))


def test_a_deployment_without_transformers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(small_network("BertModel"), tmp_path / "net")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Failure, match="modelpress\\[architectures\\]") as caught:
        read_network(path, TRANSFORMERS)
    assert caught.value.code == "unsupported_here"


def test_a_state_dict_is_not_for_transformers(tmp_path: Path) -> None:
    torch.save(small_network("BertModel").state_dict(), tmp_path / "x.pth")
    with pytest.raises(Failure, match="a zip of config"):
        read_network(tmp_path / "x.pth", TRANSFORMERS)
