"""Whether the nearest neighbour of an embedding belongs to the same class."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.spec import Metric
from worker.engine.measure.scores import Values, embeddings

BLOCK_ROWS = 1024


class EmbeddingMeter:
    """Outputs [N, D], labels [N]: samples with the same label belong together. All embeddings are kept until the end.

    recall_at_1: the share of samples whose nearest other sample, by cosine, has their label (Recall@1 of Jegou et al.,
    2011, as metric learning uses it); samples that nothing else belongs to are looked for by nobody and do not count,
    and where there is no other the recall is 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, outputs: Values, labels: Tensor) -> None:
        self.count += len(labels)
        self.rows.append(F.normalize(embeddings(outputs).detach().cpu().float()))
        self.labels.append(labels.cpu())

    def values(self) -> dict[Metric, float]:
        rows, labels = torch.cat(self.rows), torch.cat(self.labels)
        if not bool(torch.isfinite(rows).all()):
            return {"recall_at_1": float("nan")}
        asked = _with_company(labels)
        hits = 0
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS] @ rows.T
            places = torch.arange(start, start + len(block))
            block[places - start, places] = -torch.inf
            found = labels[block.argmax(1)] == labels[places]
            hits += int((found & asked[places]).sum())
        return {"recall_at_1": hits / max(1, int(asked.sum()))}


def chance_of_recall(labels: Tensor) -> float:
    """The recall at 1 expected when the nearest neighbour is any other sample."""
    counts = torch.from_numpy(np.unique(labels.numpy(), return_counts=True)[1]).double()
    asked = counts[counts > 1]
    return float((asked * (asked - 1)).sum() / (asked.sum() * (len(labels) - 1)).clamp_min(1))


def _with_company(labels: Tensor) -> Tensor:
    """Whether another sample has the same label."""
    _, inverse, counts = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
    return torch.from_numpy(counts[inverse] > 1)
