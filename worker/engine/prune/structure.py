"""Which groups a structure means, which of their parameters are looked at, and by which layers' names they go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from worker.engine.graph.bypass import Bypasses
from worker.engine.graph.channels import Channels, Group
from worker.engine.graph.roles import consumers, head_units, is_input

Structure = Literal["channels", "columns", "heads", "groups"]


@dataclass(frozen=True)
class Part:
    """A group to be pruned: `scored` has the members its units are ranked by, `layers` the names it goes by."""

    group: Group
    scored: Group
    layers: tuple[str, ...]


def parts_of(channels: Channels, structure: Structure) -> list[Part]:
    """The groups that `structure` means.

    `columns` are the same groups seen from the other side: the layers that read a unit, each a column of its weight,
    rank it and name it; groups that no layer reads as input features are none.
    """
    return PARTS[structure](channels)


def _channels(channels: Channels) -> list[Part]:
    return [Part(group, group, group.layers) for group in channels.groups]


def _columns(channels: Channels) -> list[Part]:
    found = []
    for group in channels.groups:
        members = tuple(member for member in group.members if is_input(channels, member))
        if members:
            found.append(Part(group, replace(group, members=members), consumers(channels, group)))
    return found


def _heads(channels: Channels) -> list[Part]:
    heads = head_units(channels)
    return [part for part in _channels(channels) if part.group.units[0] in heads]


def _groups(channels: Channels) -> list[Part]:
    whole = {group.id for branch in Bypasses(channels).branches() for group in branch.groups}
    return [part for part in _channels(channels) if part.group.id in whole]


PARTS: dict[Structure, Callable[[Channels], list[Part]]] = {
    "channels": _channels,
    "columns": _columns,
    "heads": _heads,
    "groups": _groups,
}
