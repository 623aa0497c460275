"""How a client's data are standardised: as the server says, the same for all clients."""

from __future__ import annotations

from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.trainer import Trainer
from featherfed.proto import federation_pb2 as pb
from featherfed.tasks.errors import TaskError
from featherfed.tasks.message import read_scaling
from featherfed.tasks.task import Task


class OwnScaling:
    """Hands the run's scaling to the trainer, if the task needs one."""

    def __init__(self, task: Task, trainer: Trainer) -> None:
        self._task = task
        self._trainer = trainer
        self._taken = b""

    @property
    def is_known(self) -> bool:
        """Whether the client needs no scaling from the server any more."""
        return bool(self._taken) or not self._task.standardizes

    def take(self, message: pb.Train | pb.Finished) -> None:
        """Use the scaling in a message; raise ClientError if it cannot be, or is missing."""
        if not self._task.standardizes:
            return
        if not message.HasField("scaling"):
            if self._taken:
                return
            raise ClientError("the server does not say how the data are standardised; refused")
        taken = message.scaling.SerializeToString(deterministic=True)
        if taken == self._taken:
            return
        try:
            scaling = read_scaling(message.scaling, self._task)
        except TaskError as error:
            raise ClientError(f"the server sends {error}; refused") from error
        self._trainer.set_scaling(scaling)
        self._taken = taken
