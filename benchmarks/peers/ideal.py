"""No tool: processes that have their share already and send nothing. Run by ../ideal.py."""

NAME = "ideal: nothing sent"
PACKAGE = None
