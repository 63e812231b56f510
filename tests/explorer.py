"""Explores the hand-over of a channel: every interleaving of a small one, with crashes anywhere.

    python tests/explorer.py --producers 2 --consumers 2 --credits 2 --items 1 --crashes 2

The search is depth-first over states. A crash may take a process away before any step that changes
something or waits. Its replacement stands in its seat at once; that it comes later is the same as
that its first step does. A take moves its tokens in one step, as the kernel holds the pipe's lock
meanwhile; stores to several words, and loads of them, are one step for each. Interleavings that
nobody can tell apart are explored once (`protocol_order.py`). A state that was seen with as many
crashes ahead is not explored again; states are told apart by a hash of 61 bits.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from typing import Any

from protocol_order import Order
from protocol_state import State, Words, Wrong, has_attempt
from protocol_steps import (
    AWAIT_OTHERS,
    AWAIT_ROOM,
    COUNT,
    DELIVER,
    DONE,
    GARBAGE,
    LOAD,
    PUT,
    READ,
    READY,
    STORE,
    TAKE,
    TRY_TAKE,
    WRITE,
    Node,
    Setup,
    lives,
)

from mpipe.transport.token import END, SLOT_MASK


class Violation(Exception):
    """What is wrong, and the steps that led there, a line for each."""

    def __init__(self, what: str, schedule: list[str]) -> None:
        super().__init__("\n".join([what, *schedule]))
        self.what = what


class Explorer:
    """Explores one configuration; `run` raises `Violation` if it can go wrong."""

    def __init__(self, setup: Setup, reduce: bool = True) -> None:
        self.setup = setup
        self.states = 0
        """Different states in which several processes could go on, or none."""
        self.steps = 0
        """Steps taken on the way to them."""
        self.ends: set[State] = set()
        self.processes = lives(setup)
        self._words = Words(setup)
        self._order = Order(setup, self._words) if reduce else None
        self._seen: dict[int, int] = {}

    def run(self) -> None:
        start, crashes = self._start(), self.setup.crashes
        stack: list[tuple[State, int, Any]] = [(start, crashes, None)]
        for process in range(len(self.processes)):
            stack += self._crash(start, crashes, process, None)
        while stack:
            state, crashes, path = stack.pop()
            try:
                for process in self._choices(state, crashes):
                    self.steps += 1
                    step = (process, state.nodes[process], path)
                    after = self._step(state, process)
                    stack += self._crash(after, crashes, process, step)
                    stack.append((after, crashes, step))
            except Wrong as wrong:
                raise Violation(str(wrong), self._schedule(path)) from wrong.__cause__

    def _start(self) -> State:
        words, layout = self._words.start(), self._words.layout
        frames = (GARBAGE,) * layout.slots
        nodes = tuple(
            self._arrive(process, life.first, words) for process, life in enumerate(self.processes)
        )
        return State(words, words[: layout.credits], (), frames, nodes, 0)

    def _choices(self, state: State, crashes: int) -> list[int]:
        """The processes whose next step must be tried in this state."""
        if self._order is not None:
            for process in range(len(self.processes)):
                if self._order.is_free(state, process, crashes):
                    return [process]
        key = hash(state)
        known = self._seen.get(key, -1)
        if known >= crashes:
            return []
        self._seen[key] = crashes
        if known < 0:
            self.states += 1
            self._words.check_slots(state)
        choices = [p for p in range(len(self.processes)) if self._can_go_on(state, p)]
        if not choices:
            items = self.setup.producers * self.setup.items
            self._words.check_end(state, self.processes, items)
            self.ends.add(state)
        return choices

    def _can_go_on(self, state: State, process: int) -> bool:
        node = state.nodes[process]
        if node.kind == TAKE:
            return bool(state.ready if node.where == READY else state.free)
        if node.kind == AWAIT_ROOM:
            return bool((node.where and state.free) or (node.what and not state.ready))
        if node.kind == AWAIT_OTHERS:
            senders = state.nodes[: self.setup.producers]
            return all(other.kind in (DONE, AWAIT_OTHERS) for other in senders)
        return node.kind != DONE

    def _crash(self, state: State, crashes: int, process: int, path: Any) -> list[Any]:
        """What to explore in case the process dies now; empty if that makes no difference."""
        node = state.nodes[process]
        is_last_frame = node.kind == DONE and process >= self.setup.producers
        changes = node.kind >= STORE or is_last_frame
        if not crashes or not changes or (node.replaces and not node.changed):
            return []
        replacement = self.processes[process].replacement
        return [(self._move(state, process, replacement), crashes - 1, (process, None, path))]

    def _move(self, state: State, process: int, node: Node) -> State:
        """The process is somewhere else; the coordinator sends the ENDs after the last producer."""
        node, nodes = self._arrive(process, node, state.words), state.nodes
        nodes = (*nodes[:process], node, *nodes[process + 1 :])
        senders, ready = nodes[: self.setup.producers], state.ready
        if process < len(senders) and all(sender.kind == DONE for sender in senders):
            ready += (END,) * self.setup.consumers
        return State(state.words, state.free, ready, state.frames, nodes, state.delivered)

    def _arrive(self, process: int, node: Node, words: tuple[int, ...]) -> Node:
        """Where the process is after loads of its own words, which nobody else stores."""
        while node.kind == LOAD and self._words.owner[node.where] == process:
            node = node.after(words[node.where])
        return node

    def _step(self, state: State, process: int) -> State:
        words, free, ready, frames, nodes, delivered = state
        kind, where, what = nodes[process].kind, nodes[process].where, nodes[process].what
        answer: Any = None
        if kind == LOAD:
            self._words.check_load(process, where)
            answer = words[where]
        elif kind == STORE:
            self._words.check_store(words, process, where, what)
            words = _replaced(words, where, (what,))
        elif kind in (TAKE, TRY_TAKE):
            index, count = what
            tokens = (ready if where == READY else free)[:count]
            answer = len(tokens)
            words = _replaced(words, index, tokens)
            free, ready = (free, ready[count:]) if where == READY else (free[count:], ready)
        elif kind == PUT and where == READY:
            ready += what
        elif kind == PUT:
            free += what
            for token in what:
                if not has_attempt(token):
                    frames = _replaced(frames, token & SLOT_MASK, (GARBAGE,))
        elif kind == READ:
            answer = frames[where]
        elif kind == COUNT:
            answer = len(ready if where == READY else free)
        elif kind == WRITE:
            frames = _replaced(frames, where, (what,))
        elif kind == DELIVER:
            token, items = what
            words = _replaced(words, where, (token,))
            delivered = _delivered(delivered, items)
        try:
            node = nodes[process].after(answer)
            return self._move(State(words, free, ready, frames, nodes, delivered), process, node)
        except Exception as error:
            name = self.processes[process].name
            raise Wrong(f"{name} fails: {type(error).__name__}: {error}") from error

    def _schedule(self, path: Any) -> list[str]:
        lines = []
        while path is not None:
            process, node, path = path
            what = self._describe(node) if node else "DIES"
            lines.append(f"{self.processes[process].name} {what}")
        return lines[::-1]

    def _describe(self, node: Node) -> str:
        kind, where, what = node.kind, node.where, node.what
        pipe = "ready" if where == READY else "free"
        if kind == LOAD:
            return f"loads {self._words.names[where]}"
        if kind == STORE:
            return f"stores {self._words.names[where]} = {what:#x}"
        if kind == PUT:
            return f"puts {', '.join(f'{token:#x}' for token in what)} to {pipe}"
        if kind in (TAKE, TRY_TAKE):
            return f"takes up to {what[1]} from {pipe}"
        if kind == DELIVER:
            return f"delivers items {what[1]}"
        frame = {READ: f"reads frame {where}", WRITE: f"writes frame {where}"}
        return frame.get(kind, f"counts {pipe}" if kind == COUNT else "waits")


def _replaced(whole: tuple[Any, ...], start: int, part: tuple[Any, ...]) -> tuple[Any, ...]:
    return whole[:start] + part + whole[start + len(part) :]


def _delivered(delivered: int, items: tuple[int, ...]) -> int:
    for item in items:
        if delivered >> item & 1:
            raise Wrong(f"item {item} is delivered twice")
        delivered |= 1 << item
    return delivered


def main() -> None:
    parser = argparse.ArgumentParser(description="Explore one configuration.")
    for field in fields(Setup):
        if type(field.default) is int:
            parser.add_argument(f"--{field.name}", type=int, default=field.default)
    setup = Setup(**vars(parser.parse_args()))
    began = time.process_time()
    explorer = Explorer(setup)
    explorer.run()
    seconds = time.process_time() - began
    print(
        f"{explorer.states:,} states, {explorer.steps:,} steps, {seconds:.0f} s of CPU: all is well"
    )


if __name__ == "__main__":
    main()
