"""Which labels, outputs and fields a task takes: what is known of sequences and embeddings at submit."""

from __future__ import annotations

from typing import Any

import pytest

from models.inspection import DatasetInspection, LabelInfo, NetworkInspection
from models.rules import check, resolve
from models.spec import Spec
from tests.models.test_rules import FINETUNE, PRUNE, RESNET, UNLABELLED, spec, tensor

LANGUAGE = RESNET.model_copy(
    update={
        "inputs": [tensor("input_ids", "int64", None, 16), tensor("attention_mask", "int64", None, 16)],
        "outputs": [
            tensor("logits", "float32", None, 16, 50),
            tensor("pooled", "float32", None, 32),
            tensor("turned", "float32", None, 50, 16),
            tensor("scores", "float32", None, 16),
        ],
    }
)
ROWS = UNLABELLED.model_copy(
    update={"inputs": [tensor("input_ids", "int64", 16), tensor("attention_mask", "int64", 16)]}
)


def labelled(**fields: Any) -> DatasetInspection:
    labels = LabelInfo(**({"dtype": "int64", "shape": [16], "classes": 6, "minimum": -100, "maximum": 4} | fields))
    return ROWS.model_copy(update={"labels": labels})


def one_a_sample(**fields: Any) -> DatasetInspection:
    return labelled(**({"shape": [], "minimum": 0} | fields))


@pytest.mark.parametrize(
    ("dataset", "data", "metric", "loss", "ignore"),
    [
        (labelled(), {"task": "tagging"}, "accuracy", "both", -100),
        (labelled(), {}, "accuracy", "both", -100),  # suggested by the labels
        (labelled(), {"task": "tagging", "output": "turned"}, "accuracy", "both", -100),
        (labelled(classes=3, maximum=1), {"task": "tagging", "output": "scores"}, "accuracy", "both", -100),
        (labelled(minimum=0, maximum=255), {"task": "tagging", "ignore": 255}, "accuracy", "both", 255),
        (labelled(), {"task": "causal_lm"}, "perplexity", "both", -100),
        (ROWS, {"task": "causal_lm"}, "perplexity", "both", None),
        (ROWS, {"task": "causal_lm", "ignore": 0}, "perplexity", "both", 0),
        (ROWS, {"task": "embedding", "output": "pooled"}, "agreement", "distill", None),
        (one_a_sample(), {"task": "embedding", "output": "pooled"}, "recall_at_1", "both", None),
    ],
)
def test_sequences_and_embeddings_get_their_defaults(
    dataset: DatasetInspection, data: dict[str, Any], metric: str, loss: str, ignore: int | None
) -> None:
    asked = spec([FINETUNE], data=data)
    assert check(asked, LANGUAGE, dataset) == []
    resolved = resolve(asked, LANGUAGE, dataset)
    assert resolved.data is not None
    assert (resolved.data.metric, resolved.data.ignore) == (metric, ignore)
    assert (resolved.steps or [])[0].model_dump()["loss"] == loss
    assert check(resolved, LANGUAGE, dataset) == []
    assert resolve(resolved, LANGUAGE, dataset) == resolved
    gradients = spec([{**PRUNE, "criterion": "taylor"}], data=data)
    differentiated = "distill" if "embedding" in data.values() else "task"
    assert (resolve(gradients, LANGUAGE, dataset).steps or [])[0].model_dump()["loss"] == differentiated


REFUSED: dict[str, tuple[Spec, NetworkInspection, DatasetInspection, str, str]] = {
    "tags for another length": (
        spec(data={"task": "tagging"}),
        LANGUAGE,
        labelled(shape=[12]),
        "/data/task",
        "The task 'tagging' takes an output [N, 12, classes] or [N, classes, 12]; the output is 'logits' float32 "
        "[N, 16, 50]. Name another output in `data.output`",
    ),
    "tags of one number": (
        spec(data={"task": "tagging"}),
        LANGUAGE,
        one_a_sample(),
        "/data/task",
        "The task 'tagging' takes a whole number for each position, counted from 0 (or -100, which does not count); "
        "the labels are int64 ['N'] from 0 to 4. They suggest 'classification'.",
    ),
    "tags below zero": (
        spec(data={"task": "tagging", "ignore": 0}),
        LANGUAGE,
        labelled(),
        "/data/task",
        "counted from 0 (or 0, which does not count); the labels are int64 ['N', 16] from -100 to 4.",
    ),
    "more tags than scores": (
        spec(data={"task": "tagging"}),
        LANGUAGE,
        labelled(maximum=50),
        "/data/dataset",
        "The labels have classes up to number 50 and the output is 'logits' float32 [N, 16, 50], for 50.",
    ),
    "one tag only": (
        spec(data={"task": "tagging"}),
        LANGUAGE,
        labelled(classes=1, minimum=4),
        "/data/task",
        "Every label is 4: with one class nothing can be learnt",
    ),
    "a language model of pictures": (
        spec(data={"task": "causal_lm"}),
        RESNET,
        UNLABELLED,
        "/data/task",
        "takes its labels from an input of whole numbers [N, length], and the network has none: send the token that "
        "follows at each position as `y`.",
    ),
    "a vocabulary that is not last": (
        spec(data={"task": "causal_lm", "output": "turned"}),
        LANGUAGE,
        ROWS,
        "/data/task",
        "The task 'causal_lm' takes an output [N, 16, vocabulary]; the output is 'turned' float32 [N, 50, 16].",
    ),
    "an embedding of a sequence": (
        spec(data={"task": "embedding"}),
        LANGUAGE,
        ROWS,
        "/data/task",
        "The task 'embedding' takes a floating-point output [N, features]; the output is 'logits'",
    ),
    "embeddings of fractions": (
        spec(data={"task": "embedding", "output": "pooled"}),
        LANGUAGE,
        one_a_sample(dtype="float32", classes=None),
        "/data/task",
        "The task 'embedding' takes one whole number a sample, the same for samples that belong together",
    ),
    "embeddings in batches of one": (
        spec([{**FINETUNE, "batch_size": 1}], data={"task": "embedding", "output": "pooled"}),
        LANGUAGE,
        one_a_sample(),
        "/steps/0/batch_size",
        "Embeddings are learnt from pairs in a batch: make `batch_size` 2 or more, or use the loss `distill`.",
    ),
    "the gradient of one embedding": (
        spec([{**PRUNE, "criterion": "taylor", "loss": "task"}], data={"task": "embedding", "output": "pooled"}),
        LANGUAGE,
        one_a_sample(),
        "/steps/0/loss",
        "(embeddings are learnt from pairs, gradients are of one sample): use 'distill'.",
    ),
    "recall without labels": (
        spec(data={"task": "embedding", "output": "pooled", "metric": "recall_at_1"}),
        LANGUAGE,
        ROWS,
        "/data/metric",
        "The metric 'recall_at_1' cannot be computed for data without labels: choose from agreement.",
    ),
    "an ignored label where all count": (
        spec(data={"task": "embedding", "output": "pooled", "ignore": 3}),
        LANGUAGE,
        one_a_sample(),
        "/data/ignore",
        "Every label of the task 'embedding' counts: leave `ignore` out.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_task_cannot_take_is_refused_with_the_remedy(name: str) -> None:
    asked, network, dataset, pointer, message = REFUSED[name]
    problems = check(asked, network, dataset)
    assert [problem.pointer for problem in problems] == [pointer]
    assert message in problems[0].message
