"""Where items come from, in words: their place in the source."""

from __future__ import annotations

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
