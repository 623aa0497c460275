"""An immutable set of which larger ones are made in constant time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Set
from itertools import islice


class GrowingSet(Set[str]):
    """A set of names; sets made from one another by `with_one` share their memory."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self._size = len(self._order)

    def with_one(self, name: str) -> GrowingSet:
        """Return the set with one more name."""
        if name in self:
            return self
        # If another set has grown from this one, its names must not get into the new one.
        grown = len(self._order) > self._size
        larger = GrowingSet(self) if grown else copy.copy(self)
        larger._order[name] = self._size
        larger._size = self._size + 1
        return larger

    def __contains__(self, name: object) -> bool:
        """Whether the set has this name."""
        return isinstance(name, str) and self._order.get(name, self._size) < self._size

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order in which they came."""
        return islice(iter(list(self._order)), self._size)

    def __len__(self) -> int:
        """Return how many names there are."""
        return self._size

    def __hash__(self) -> int:
        """Return the hash of an equal frozenset."""
        return hash(frozenset(self))

    @classmethod
    def _from_iterable(cls, names: Iterable[str]) -> frozenset[str]:  # type: ignore[override]
        """Return what set operations such as `-` make."""
        return frozenset(names)
