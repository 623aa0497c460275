"""What a private run has spent: the only module that knows Google's dp-accounting."""

from __future__ import annotations

from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.rdp import RdpAccountant


def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Return the epsilon, at `delta`, of a client that took part in so many `rounds`.

    By Renyi differential privacy (Mironov 2017) of Gaussian mechanisms in a row. That cohorts are
    sampled does not count: it would help only if nobody knew who was in a round, and the report,
    the ledger and the clients know. What counts is how often a client really took part.
    """
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(GaussianDpEvent(noise_multiplier), rounds)
    return float(accountant.get_epsilon(delta))
