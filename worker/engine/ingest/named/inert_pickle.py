"""What a pickle describes, without making any of it: no class is looked up, no function called, no object built.

A stack machine over `pickletools.genops`, which only splits bytes into opcodes. Names of classes and functions become
`Global`, calls become `Call`; who reads the result decides what a call to a few well-known names stands for.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from models.errors import Code, Failure
from worker.engine.ingest.rejected import rejected

MAXIMUM_DEPTH = 100

Operations = Iterator[tuple[str, Any]]


class Global(NamedTuple):
    """The name of a class or function."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Call:
    """An object as the pickle would have had it made."""

    callee: Global
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Stored:
    """What the pickle leaves to its reader: `key` names data outside of it."""

    key: Any


DICTIONARIES = frozenset(
    {
        *(Global("collections", name) for name in ("OrderedDict", "defaultdict", "Counter")),
        *(Global(module, "dict") for module in ("builtins", "__builtin__")),
    }
)


def parse(
    document: bytes, known: Callable[[Global], bool], refuse: Callable[[Global, Iterator[Global]], Failure]
) -> Any:
    """What `document` describes, of dicts, lists, tuples, texts, numbers, `Global`, `Call` and `Stored`.

    For a name that is not `known`, the failure that `refuse` makes of it and of the names that follow it is raised.
    Raises `Failure` also for a broken pickle (network_rejected) and for one nested too deep (too_deep).
    """
    operations = ((opcode.name, argument) for opcode, argument, _ in pickletools.genops(document))
    machine = _Machine()
    try:
        for name, argument in operations:
            if name == "STOP":
                return _checked_depth(machine.pop())
            machine.take(name, argument)
            if machine.named is not None and not known(machine.named):
                raise refuse(machine.named, _names(operations))
            machine.named = None
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise rejected(f"the pickle in the file is broken: {ascii(str(error)[:200])[1:-1]}") from error
    raise rejected("the pickle in the file ends too early")


def _names(operations: Operations) -> Iterator[Global]:
    """The names in what is left of a pickle, for a message; those that protocol 4 splits are found by their texts."""
    before = last = ""
    try:
        for name, argument in operations:
            if name == "GLOBAL":
                yield Global(*argument.split(" ", 1))
            elif name == "STACK_GLOBAL":
                yield Global(before, last)
            elif isinstance(argument, str):
                before, last = last, argument
    except ValueError:
        return


class _Mark:
    pass


class _Machine:
    """The stack and the memo of one pickle. Methods fail with ordinary errors on what no pickler writes."""

    def __init__(self) -> None:
        self.named: Global | None = None
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def take(self, name: str, argument: Any) -> None:
        operation = _OPERATIONS.get(name)
        if operation is None:
            raise ValueError(f"opcode {name} is not one that torch.save writes")
        operation(self, argument)

    def pop(self) -> Any:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a mark stands where a value should")
        return value

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def remember(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def recall(self, place: int) -> None:
        self.push(self._memo[place])

    def one_name(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self._name(module, name)

    def two_names(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name is not a text")
        self._name(module, name)

    def call(self) -> None:
        arguments, callee = self.pop(), self.pop()
        if not (isinstance(callee, Global) and isinstance(arguments, tuple)):
            raise ValueError("what is called has no name")
        if callee not in DICTIONARIES:
            self.push(Call(callee, arguments))
            return
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else ()
        self.push({_key(key): value for key, value in pairs})

    def store(self) -> None:
        self.push(Stored(self.pop()))

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(values[::-1]))

    def to_mark(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(self._stack[-1], _Mark):
            values.append(self._stack.pop())
        self._stack.pop()
        return values[::-1]

    def append(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("something is appended to what is no list")
        self._stack[-1].extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_items(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise ValueError("an entry is added to what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._stack[-1][_key(key)] = value

    def _name(self, module: str, name: str) -> None:
        self.named = Global(module, name)
        self.push(self.named)


def _key(key: Any) -> Any:
    """Keys are plain: hashing a tuple recurses into it."""
    if not isinstance(key, str | int | float | bytes | None):
        raise ValueError("a dict has a key that is neither a text nor a number")
    return key


_OPERATIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "BINFLOAT": _Machine.push,
    "BINUNICODE": _Machine.push,
    "SHORT_BINUNICODE": _Machine.push,
    "BINUNICODE8": _Machine.push,
    "BINSTRING": _Machine.push,
    "SHORT_BINSTRING": _Machine.push,
    "BINBYTES": _Machine.push,
    "SHORT_BINBYTES": _Machine.push,
    "BINBYTES8": _Machine.push,
    "MARK": lambda machine, _: machine.push(_Mark()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "ADDITEMS": lambda machine, _: machine.append(machine.to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: machine.set_item(),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.one_name,
    "STACK_GLOBAL": lambda machine, _: machine.two_names(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.pop(),  # attributes of an object: of metadata, never of what is read
    "BINPERSID": lambda machine, _: machine.store(),
}
"""What torch.save writes with any of Python's binary protocols."""


def _checked_depth(root: Any) -> Any:
    """Level by level, since what is nested deep enough crashes whatever recurses into it, also the interpreter."""
    level, seen = [root], {id(root)}
    for _ in range(MAXIMUM_DEPTH):
        below: list[Any] = []
        for child in (child for value in level for child in _children(value)):
            if isinstance(child, dict | list | tuple | Call | Stored) and id(child) not in seen:
                seen.add(id(child))
                below.append(child)
        if not below:
            return root
        level = below
    raise Failure(Code.TOO_DEEP, f"the file nests values more than {MAXIMUM_DEPTH} deep")


def _children(value: Any) -> Any:
    match value:
        case dict():
            return value.values()
        case Call():
            return value.arguments
        case Stored():
            return (value.key,)
        case list() | tuple():
            return value
    return ()
