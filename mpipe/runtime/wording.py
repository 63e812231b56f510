"""What messages say: where items come from in the source, and what an exception was."""

from __future__ import annotations

from ..errors import WorkerDied
from ..transport.frame import Tag


def describe_position(tag: Tag, index: int) -> str:
    """Name an item by the source item, or items, that it derives from."""
    if tag.exact:
        return f"source item {tag.origin + index}"
    if tag.span == 0:
        return "an item from finish()"
    return f"an item from {_source_items(tag)}"


def describe_frame(tag: Tag) -> str:
    """Name all items of a frame."""
    if tag.exact:
        return _source_items(tag)
    return "items from finish()" if tag.span == 0 else f"items from {_source_items(tag)}"


def _source_items(tag: Tag) -> str:
    if tag.span == 1:
        return f"source item {tag.origin}"
    return f"source items {tag.origin} to {tag.origin + tag.span - 1}"


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    if isinstance(error, WorkerDied):
        return f"WorkerDied: {error.args[0]}"
    kind = type(error)
    is_plain = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if is_plain else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error).strip().partition("\n")[0]
    except Exception:
        message = "its message cannot be had"
    return f"{name}: {message}" if message else name
