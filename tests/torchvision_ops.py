"""torchvision, which transformers and timm import, beside a torch build that its operators do not load into."""

from __future__ import annotations

from worker.engine.ingest.named.torchvision_ops import make_importable


def declare() -> None:
    """Declare the operators whose absence stops `import torchvision`; does nothing where they load."""
    make_importable()
