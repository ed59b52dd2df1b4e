"""Names of layers, from the names that exporters give to nodes."""

from __future__ import annotations

import re

from onnx import NodeProto

from worker.engine.ingest.names import safe_path

_SCOPES = "pkg.torch.onnx.name_scopes"


def layer_of(node: NodeProto, number: int) -> str:
    """The path of a node's layer.

    torch notes the modules around a call beside the node, or names it `/layer1/layer1.0/conv1/Conv`: both give
    `layer1.0.conv1`. A node without a name is called by its operator and its number.
    """
    noted = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    scopes = re.findall(r"'([^']{0,512})'", noted[:4096])
    if len(scopes) > 2 and (path := safe_path(scopes[-2])):
        return path
    parts = [part for part in node.name[:512].split("/") if part]
    if len(parts) > 1 and re.fullmatch(rf"{re.escape(node.op_type)}(_\d+)?", parts[-1]):
        parts.pop()
    # torch writes the whole path again with each level: what a longer part begins with is said by it.
    kept = [part for part, behind in zip(parts, [*parts[1:], ""], strict=False) if not behind.startswith(f"{part}.")]
    path = safe_path(".".join(kept).replace(":", "_"))
    return path or safe_path(f"{node.op_type.lower()[:40]}_{number}") or f"node_{number}"
