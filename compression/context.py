"""What both sides know of an update without sending it."""

from __future__ import annotations

from dataclasses import dataclass, field

from featherfed.compression.arrays import Array
from featherfed.compression.importance import Allocation
from featherfed.compression.key import NO_KEY, Key


@dataclass(frozen=True)
class Context:
    """One update among those of its round.

    `key` is the round's, the same for all its clients. `slot` of `slots` is the client's place in
    the round: clients in different slots send different coordinates. `allocation` is what is known
    of the importance of coordinates, None if nothing is yet. `statistics` are the base's values of
    all tensors that are not trained, float32 [n], zeros if None: a sketch sends new values of them.
    """

    key: Key = NO_KEY
    slot: int = 0
    slots: int = 1
    allocation: Allocation | None = None
    statistics: Array | None = field(default=None, compare=False)

    @property
    def own(self) -> Key:
        """The key of this update alone."""
        return self.key.child("slot", self.slot)

    @property
    def digest(self) -> bytes:
        """What a payload is bound to by its checksum; nothing for a codec that needs no context."""
        if self == PLAIN:
            return b""
        allocation = self.allocation.digest if self.allocation else b""
        return b"%b/%d/%d/%b" % (self.key.bits, self.slot, self.slots, allocation)


PLAIN = Context()
"""For codecs that need no context."""
