"""The nesting of inputs and outputs (torch.utils._pytree, version 1): tuples, lists, dicts; no class is imported.

A registered class that flattens to a list of keys, such as the outputs of transformers, becomes a plain dict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from worker.engine.ingest.rejected import rejected, shown

MAXIMUM_DEPTH = 20
MAXIMUM_NODES = 10_000


@dataclass(frozen=True)
class Tree:
    """`keys` name the children of a dict; a leaf stands for one value, `none` for no value."""

    kind: Literal["leaf", "none", "tuple", "list", "dict"]
    children: tuple[Tree, ...] = ()
    keys: tuple[str | int, ...] = ()

    @property
    def leaves(self) -> int:
        return 1 if self.kind == "leaf" else sum(child.leaves for child in self.children)

    def paths(self, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
        """The way to every leaf, in order: dict keys and positions."""
        if self.kind == "leaf":
            return [prefix]
        keys = self.keys if self.kind == "dict" else range(len(self.children))
        return [path for key, child in zip(keys, self.children, strict=True) for path in child.paths((*prefix, key))]

    def fill(self, values: Iterator[Any]) -> Any:
        """The structure with each leaf taken from `values`."""
        if self.kind == "leaf":
            return next(values)
        if self.kind == "none":
            return None
        filled = [child.fill(values) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.keys, filled, strict=True))
        return tuple(filled) if self.kind == "tuple" else filled


def parse_treespec(text: str, where: str) -> Tree:
    """Raises `Failure` (network_rejected) for any other container, too deep a nesting, or broken JSON."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise rejected(f"the structure of the {where} is not JSON", where) from error
    if not isinstance(document, list) or len(document) != 2 or document[0] != 1:
        raise rejected(f"the structure of the {where} is not a tree specification of version 1", where)
    return _Parser(where).tree(document[1], 0)


class _Parser:
    def __init__(self, where: str) -> None:
        self._where = where
        self._nodes = 0

    def _bad(self, what: str) -> Exception:
        return rejected(f"the structure of the {self._where} {what}", self._where)

    def tree(self, node: object, depth: int) -> Tree:
        self._nodes += 1
        if depth > MAXIMUM_DEPTH or self._nodes > MAXIMUM_NODES:
            raise self._bad("is nested too deeply or has too many parts")
        if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
            raise self._bad("has a part without children")
        kind, context = node.get("type"), node.get("context")
        children = tuple(self.tree(child, depth + 1) for child in node["children_spec"])
        if kind is None:
            if children:
                raise self._bad("has a leaf with children")
            return Tree("leaf" if context is None else "none")
        if not isinstance(kind, str):
            raise self._bad("has a part whose type is not text")
        if kind == "builtins.tuple" or kind == "collections.namedtuple":
            return Tree("tuple", children)
        if kind == "builtins.list":
            return Tree("list", children)
        if kind == "collections.defaultdict":
            raise self._bad("uses collections.defaultdict, which names code to import; return a plain dict")
        keys = self._keys(kind, context)
        if len(keys) != len(children) or len(set(keys)) != len(keys):
            raise self._bad(f"has a {shown(kind)} whose keys do not match its values")
        return Tree("dict", children, keys)

    def _keys(self, kind: str, context: object) -> tuple[str | int, ...]:
        refusal = self._bad(f"uses {shown(kind)}; return tensors, or tuples, lists and dicts of tensors")
        try:
            keys = json.loads(context) if isinstance(context, str) else context
        except (ValueError, RecursionError) as error:
            raise refusal from error
        if isinstance(keys, list) and len(keys) == 2 and isinstance(keys[0], list):
            keys = keys[0]
        if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
            raise refusal
        return tuple(keys)
