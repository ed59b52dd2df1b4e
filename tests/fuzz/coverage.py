"""Which statements of the readers ran, and from which they were reached.

The readers' modules are imported with a call before each statement. `sys.settrace` would see the same, at the price of
a call for every function of torch that they call.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
FOLLOWED = ("worker.engine.ingest.", "worker.engine.data.", "models.formats")
_MARK = "__reached__"


class Coverage:
    """`statements` has the file of each, in the order of their numbers, None outside of functions; `reached` those
    that ran, `arcs` the pairs that ran one after the other."""

    def __init__(self) -> None:
        self.statements: list[str | None] = []
        self.reached: set[int] = set()
        self.arcs: set[tuple[int, int]] = set()
        self._last = -1

    def reach(self, number: int) -> None:
        self.reached.add(number)
        self.arcs.add((self._last, number))
        self._last = number

    def forget(self) -> None:
        self.reached.clear()
        self.arcs.clear()

    def of(self, paths: Sequence[Path]) -> tuple[int, int]:
        """How many statements of these files ran, and how many there are."""
        names = {str(path) for path in paths}
        every = {number for number, name in enumerate(self.statements) if name in names}
        return len(every & self.reached), len(every)


COVERAGE = Coverage()


def follow() -> None:
    """From now on, what is imported of the readers tells what it does."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name.startswith(FOLLOWED) else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = _Marker(path).visit(ast.parse(self.get_data(path)))
        return compile(ast.fix_missing_locations(tree), path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[_MARK] = COVERAGE.reach
        super().exec_module(module)


class _Marker(ast.NodeTransformer):
    """Puts a call with its number before each statement."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._in_functions = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._in_functions += 1
        self.generic_visit(node)
        self._in_functions -= 1
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name, value in ast.iter_fields(node):
            if (
                isinstance(value, list)
                and value
                and isinstance(value[0], ast.stmt)
                and not isinstance(node, ast.Module)
            ):
                setattr(node, name, [part for statement in value for part in self._marked(statement)])
        return node

    def _marked(self, statement: ast.stmt) -> Iterator[ast.stmt]:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not is_docstring:
            number = len(COVERAGE.statements)
            COVERAGE.statements.append(self._path if self._in_functions else None)
            call = ast.Call(ast.Name(_MARK, ast.Load()), [ast.Constant(number)], [])
            yield ast.copy_location(ast.Expr(call), statement)
        yield statement


def words_of(paths: Sequence[Path]) -> list[bytes]:
    """Texts and bytes that the code compares with, looks up or splits by."""
    constants = {
        node.value
        for path in paths
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant)
    }
    texts = {value.encode() for value in constants if isinstance(value, str) and " " not in value}
    words = texts | {value for value in constants if isinstance(value, bytes)}
    return sorted(word for word in words if 1 < len(word) <= 40)
