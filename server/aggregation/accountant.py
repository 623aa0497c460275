"""The privacy that a run has spent; the only module that imports Google's dp-accounting."""

from __future__ import annotations

from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.rdp import RdpAccountant


def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Return the epsilon, at `delta`, of a client that took part in `rounds` rounds.

    By Renyi differential privacy (Mironov 2017) of composed Gaussian mechanisms, which bounds that
    of discrete ones (Canonne, Kamath and Steinke 2020). There is no amplification by sampling: it
    holds only if nobody knows who was in a round, and the report, the ledger and the clients do.
    """
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(GaussianDpEvent(noise_multiplier), rounds)
    return float(accountant.get_epsilon(delta))
