"""HTML from values: what is not `Html` already is text and is escaped; nothing in a person's file becomes markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable


class Html(str):
    """Text that is HTML. Only this module makes it."""

    __slots__ = ()


Child = str | None | Iterable["Child"]

_VOID = frozenset({"meta", "br"})
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""Control characters, lone surrogates, and marks that turn the direction of text or take no room."""


def element(tag: str, *children: Child, **attributes: str | int | None) -> Html:
    """`<tag …>children</tag>`. An attribute's trailing underscore goes, the others become hyphens; null ones are left
    out."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>" if tag in _VOID else f"<{tag}{written}>{joined(children)}</{tag}>")


def joined(children: Child) -> Html:
    """Children one after another."""
    if children is None:
        return Html("")
    if isinstance(children, str):
        return children if isinstance(children, Html) else escaped(children)
    return Html("".join(map(joined, children)))


def escaped(text: str) -> Html:
    """`text` as text, what cannot be seen as U+FFFD."""
    return Html(html.escape(_UNSEEN.sub("\ufffd", text)))


def style_element(css: str) -> Html:
    """A style sheet of ours: it is not escaped, because HTML reads it as it stands."""
    assert "<" not in css
    return Html(f"<style>{css}</style>")


def document(*children: Child) -> str:
    """A whole page."""
    return f"<!DOCTYPE html>\n{element('html', *children, lang='en')}\n"
