"""The context of an update: what sender and receiver both know, so that it is never sent."""

from __future__ import annotations

from dataclasses import dataclass, field

from featherfed.compression.arrays import Array
from featherfed.compression.importance import Allocation
from featherfed.compression.key import NO_KEY, Key


@dataclass(frozen=True)
class Context:
    """The place of one update among those of its round.

    `key`: the round's shared randomness, the same for all its clients. `slot` of `slots`: the
    client's place in the round; clients in different slots send different coordinates.
    `allocation`: the importance of coordinates, None if nothing is known yet. `statistics`: the
    values of all tensors that are not trained before the update, float32 [n], zeros if None.
    """

    key: Key = NO_KEY
    slot: int = 0
    slots: int = 1
    allocation: Allocation | None = None
    statistics: Array | None = field(default=None, compare=False)

    @property
    def update_key(self) -> Key:
        """The key of this update alone."""
        return self.key.child("slot", self.slot)

    @property
    def digest(self) -> bytes:
        """Bytes that stand for the context in a payload's checksum; empty for NO_CONTEXT."""
        if self == NO_CONTEXT:
            return b""
        allocation = self.allocation.digest if self.allocation else b""
        return b"%b/%d/%d/%b" % (self.key.bits, self.slot, self.slots, allocation)


NO_CONTEXT = Context()
"""For codecs that need no context."""
