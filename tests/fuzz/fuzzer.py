"""One target fed with changed files: what reaches new code is kept and changed further."""

from __future__ import annotations

import random
import re
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.errors import Code, Failure
from models.events import ENGINE_EVENT, MAX_LINE_BYTES, EngineEvent, FailedEvent, InspectedEvent
from tests.fuzz.coverage import COVERAGE, ROOT, words_of
from tests.fuzz.guard import Guard
from tests.fuzz.mutate import Mutator
from tests.fuzz.structures import structure_of
from tests.fuzz.targets import Target

NEWEST = 30
"""Of the files kept, those that are chosen as often as all others together."""
MADE_ANEW = 0.3
"""The share of files that a library writes from what was drawn, where a target has that."""

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""In JSON; after another backslash it is the text of it."""


@dataclass(frozen=True)
class Finding:
    """`problem` is what a reader did instead of returning or refusing; the same at the same place is one finding."""

    problem: str
    content: bytes


class Fuzzer:
    """`folder` is the only place where anything is written; `inputs`, `accepted` and `findings` count."""

    def __init__(self, target: Target, folder: Path, guard: Guard, seed: int) -> None:
        self.target, self.guard = target, guard
        self.path = folder / "input"
        COVERAGE.forget()
        self.inputs = self.accepted = 0
        self.findings: dict[str, Finding] = {}
        self._paths = tuple(ROOT / name for name in target.readers)
        self._choose = random.Random(seed)
        self._kept: list[bytes] = []
        self._mutator = Mutator(self._choose, words_of(self._paths), self._kept, structure_of)

    def plant(self, seeds: list[bytes]) -> None:
        """Files to begin with, each read once as it is."""
        for content in seeds:
            self.feed(content)
            self._kept.append(content)

    def run(self, *, inputs: int | None = None, seconds: float | None = None) -> Iterator[Finding | None]:
        """What each file led to, until so many or so long."""
        end = time.monotonic() + (seconds if seconds is not None else float("inf"))
        done = 0
        while (inputs is None or done < inputs) and time.monotonic() < end:
            content = self._next()
            before = len(COVERAGE.arcs)
            yield self.feed(content)
            if len(COVERAGE.arcs) > before:
                self._kept.append(content)
            done += 1

    def statements(self) -> tuple[int, int]:
        """How many statements of the target's own readers ran, and how many there are."""
        return COVERAGE.of(self._paths)

    def feed(self, content: bytes) -> Finding | None:
        """Read one file. Gives what is new of what should not have happened."""
        self.path.write_bytes(content)
        self.inputs += 1
        self.guard.seen.clear()
        problem = self._problem()
        if self.guard.seen:
            problem = f"it did {self.guard.seen[0]}"
        if problem is None or problem in self.findings:
            return None
        self.findings[problem] = Finding(problem, content)
        return self.findings[problem]

    def _next(self) -> bytes:
        if self.target.anew is not None and self._choose.random() < MADE_ANEW:
            return self.target.anew(self._choose)
        kept = self._kept[-NEWEST:] if self._choose.random() < 0.5 else self._kept
        return self._mutator.mutated(self._choose.choice(kept))

    def _problem(self) -> str | None:
        try:
            with self.guard.watching():
                inspections = self.target.read(self.path)
            events: list[EngineEvent] = [InspectedEvent(inspection=inspection) for inspection in inspections]
            self.accepted += 1
        except Failure as failure:
            if failure.code is Code.INTERNAL:
                return f"it calls its own mistake {failure.message}"
            events = [FailedEvent(error=failure.as_error("inspecting"))]
        except Exception as error:
            return _where(error)
        return next(filter(None, map(why_not_told, events)), None)


def why_not_told(event: EngineEvent) -> str | None:
    """The worker reads what the engine writes, and PostgreSQL stores it: no lone surrogates, no NUL."""
    try:
        line = event.model_dump_json()
        ENGINE_EVENT.validate_json(line)
    except Exception as error:
        return f"{event.type} cannot be told: {_where(error)}"
    if len(line) > MAX_LINE_BYTES:
        return f"{event.type} has {len(line)} characters"
    return f"{event.type} holds a NUL" if _NUL.search(line) else None


def _where(error: BaseException) -> str:
    """The kind of error and the line of ours that led to it, for the first error of a chain."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and ".venv" not in frame.filename]
    last = ours[-1] if ours else frames[-1]
    name = Path(last.filename).relative_to(ROOT) if ours else Path(last.filename).name
    return f"{type(error).__name__} at {name}:{last.lineno}"
