"""Where items come from, in words: their place in the source."""

from __future__ import annotations

from ..transport.frame import Header


def describe_position(header: Header, index: int) -> str:
    """Name an item by the source item, or items, that it derives from."""
    if header.exact:
        return f"source item {header.origin + index}"
    if header.span == 0:
        return "an item from finish()"
    return f"an item from {_source_items(header)}"


def describe_frame(header: Header) -> str:
    """Name all items of a frame."""
    if header.exact:
        return _source_items(header)
    return "items from finish()" if header.span == 0 else f"items from {_source_items(header)}"


def _source_items(header: Header) -> str:
    if header.span == 1:
        return f"source item {header.origin}"
    return f"source items {header.origin} to {header.origin + header.span - 1}"
