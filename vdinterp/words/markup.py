"""The light markup of summaries and reports, and `Text`, a string written in it.

A blank line starts a new paragraph, `backticks` set code, **stars** set bold, and lines that start with "- " become a
list: so it is Markdown, too.
"""

from __future__ import annotations

import html
import re
from typing import Any

_CODE, _BOLD = re.compile(r"`([^`]+)`"), re.compile(r"\*\*([^*]+)\*\*")


class Text(str):
    """A string with markup that prints as plain text and that a notebook renders; as a `str` it keeps its markup."""

    __slots__ = ()

    def __new__(cls, text: str) -> Text:
        return super().__new__(cls, str.__str__(text))  # str() of a Text would be without its markup

    def __str__(self) -> str:
        return plain(self)

    def __format__(self, spec: str) -> str:
        return format(str.__str__(self), spec)  # inside another text it still has its markup

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/markdown": markdown(self), "text/html": paragraphs(self)}


def plain(text: str) -> str:
    """Without markup: for a terminal."""
    return _BOLD.sub(r"\1", _CODE.sub(r"\1", text))


def markdown(text: str) -> str:
    """As Markdown in which nothing is taken for HTML."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else html.escape(part, quote=False) for part in parts)


def inline(text: str) -> str:
    """One line as HTML."""
    return _BOLD.sub(r"<b>\1</b>", _CODE.sub(r"<code>\1</code>", html.escape(text, quote=False)))


def paragraphs(text: str) -> str:
    """Paragraphs and lists as HTML."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if not block.strip():
            continue
        lead: list[str] = []
        items: list[str] = []
        for line in block.splitlines():
            if line.startswith("- "):
                items.append(line[2:])
            elif items:
                items[-1] += f" {line.strip()}"
            else:
                lead.append(line.strip())
        if lead:
            parts.append(f"<p>{inline(' '.join(lead))}</p>")
        if items:
            parts.append("<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>")
    return "".join(parts)
