"""Tables of documentation: Markdown, and its place in a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

_BEGIN, _END = "<!-- {0}: begin -->", "<!-- {0}: end -->"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def cell(text: str, limit: int = 120) -> str:
    """`text` as it can stand in a cell: one line, not long, no markup of its own."""
    line = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers `name` of a page, and nothing else of it."""
    begin, end = _BEGIN.format(name), _END.format(name)
    before, found, rest = page.read_text().partition(begin)
    _, ends, after = rest.partition(end)
    if not (found and ends):
        raise SystemExit(f"{page} has no lines {begin!r} and {end!r} to write between")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
