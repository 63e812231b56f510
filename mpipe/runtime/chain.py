"""The later stages of a chain: what one gives, the next one takes at once, in the same process.

Each has a kernel and an account of its own. They count when the head's do: nothing of a chain is
ever in flight between two of its stages. All `on_error="raise"`: what fails here ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..plan import Plan
from ..transport import counters
from ..transport.counters import SeatCounters
from ..transport.frame import Header
from .account import Account
from .emitter import Emitter
from .gate import WorkerGate
from .host import Host
from .kernel import Kernel, Watch
from .outbox import Outlet


class Follower:
    """The stage of `host`, at some `place` after the head; satisfies `Outlet` for the one before.

    `head` is the account of the first stage, in whose seat the process is known.
    """

    waited_ns = 0  # that of the end of the chain is the worker's

    def __init__(self, host: Host, place: int, head: Account, account: Account) -> None:
        self.host = host
        self.account = account
        self.kernel: Kernel  # once it is joined
        self._place = place
        self._head = head
        self._end: Outlet
        self._header: Header | None = None
        self._watch: Watch | None = None

    def join(self, outlet: Outlet, end: Emitter) -> None:
        """Its outputs go to `outlet`, and from there to the `end` of the chain."""
        self._end = end
        self.kernel = Kernel(self.host, outlet, end)

    def begin(self, header: Header, watch: Watch | None) -> None:
        """What comes next is of the frame `header`."""
        self._header, self._watch = header, watch

    @property
    def flush_items(self) -> int:
        return self._end.flush_items

    def emit(self, outputs: list[Any], items: range, last: bool) -> None:
        self._head.seat.put(counters.AT_STAGE, self._place)
        self.kernel.run(outputs, self._watch, last)
        self._head.seat.put(counters.AT_STAGE, self._place - 1)
        self.account.add(self.kernel, self._header, 0)
        self._head.further_ns += self.kernel.service_ns


def make_followers(plan: Plan, head: Account) -> list[Follower]:
    """Those after the stage of the account, in order."""
    board, leader = head.seat.board, head.seat.seat
    first, *rest = plan.chain(plan.stage_of(leader))
    worker = leader - plan.first_seat[first]
    made = []
    for place, stage in enumerate(rest, start=1):
        seat = plan.first_seat[stage] + worker
        is_terminal = seat in plan.terminal_seats
        account = Account(SeatCounters(board, seat), is_terminal, has_buffer=False)
        made.append(Follower(Host(plan.graph.stages[stage], worker), place, head, account))
    return made


def join(
    head: Host, followers: Sequence[Follower], end: Emitter, gate: WorkerGate | None
) -> Kernel:
    """The kernel of the head, which hands on to the first of the followers, and so on to the end.

    All hosts are open.
    """
    outlet: Outlet = end
    for follower in reversed(followers):
        follower.join(outlet, end)
        outlet = follower
    kernel = before = Kernel(head, outlet, end, gate)
    for follower in followers:
        follower.kernel.follow(before)
        before = follower.kernel
    return kernel
