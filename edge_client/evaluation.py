"""How good models are on the examples that a client holds out of training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.edge_client.errors import (
    ClientError,
    Rejected,
    SessionLost,
    StaleTask,
    Unreachable,
)
from featherfed.edge_client.scaling import OwnScaling
from featherfed.edge_client.state import HeldModel
from featherfed.edge_client.trainer import Trainer
from featherfed.edge_client.transport import Transport
from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.message import evaluation_message
from featherfed.tasks.scoring import Sums

log = logging.getLogger(__name__)


class OwnEvaluation:
    """Evaluates models on the client's held-out examples, if the plan asks for it."""

    def __init__(self, trainer: Trainer, holdout: float) -> None:
        """`holdout`: the plan's; 0 if clients do not evaluate."""
        self._trainer = trainer
        self._wanted = holdout > 0

    def of(self, weights: Sequence[Array]) -> pb.Evaluation | None:
        """Return the sums for a model; None if nobody wants them, or they are not finite."""
        sums = self._trainer.evaluate(weights) if self._wanted else None
        return None if sums is None else finite_message(sums)


def finite_message(sums: Sums) -> pb.Evaluation | None:
    """Return sums as they are sent; None, with a warning, if one is not finite."""
    with np.errstate(over="ignore"):
        message = evaluation_message(sums)
    if not np.isfinite(message.sums).all():
        log.warning("the model's loss or a metric on held-out examples is not finite")
        return None
    return message


class FinalReport:
    """Tells the server how good the final model is on this client's examples."""

    def __init__(
        self,
        transport: Transport,
        session: int,
        evaluation: OwnEvaluation,
        scaling: OwnScaling,
        goes_on: bool = False,
    ) -> None:
        """`goes_on`: whether the client will evaluate the int8 file too, if it is asked to."""
        self._transport = transport
        self._session = session
        self._evaluation = evaluation
        self._scaling = scaling
        self._goes_on = goes_on

    def send(self, finished: pb.Finished, held: HeldModel) -> None:
        """Evaluate the final model and report it; a failure is only logged, the model is there."""
        report = pb.EvaluationReport(
            session=self._session,
            version=finished.version,
            goes_on=self._goes_on and finished.evaluate_int8,
        )
        try:
            self._scaling.take(finished)
            found = self._evaluation.of(held.weights)
            if found is not None:
                report.evaluation.CopyFrom(found)
            self._transport.report_evaluation(report)
        except (ClientError, Rejected, SessionLost, StaleTask, Unreachable) as error:
            log.warning(
                "the final model is here, but not how good it is on these data at the server: %s",
                error,
            )
