"""As queues.py, with lists of items for messages."""

from .queues import chain

__all__ = ["chain"]

NAME = "multiprocessing.Queue by hand"
SETTING = "lists"
PACKAGE = None
SINGLES = False
