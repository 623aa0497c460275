"""Makes the trainers of a simulated run's clients, in this process or in workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from featherfed.compression.exchange.manifest import Manifest
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.trainer import KerasLoop, Trainer
from featherfed.models.threads import Threads
from featherfed.proto import federation_pb2 as pb

if TYPE_CHECKING:
    from featherfed.models.optimized import FederatedModel


@dataclass
class ClientTrainers:
    """Makes a trainer for each client; those of a process share one Keras model.

    Pickled, it leaves the model out, which another process makes anew of its description, and only
    for Keras; that process computes with as many threads as this one, since results depend on it.
    """

    examples: Mapping[str, Examples]
    model: FederatedModel | None
    loop: KerasLoop | None = None
    recipe: tuple[Any, ...] = field(init=False)
    threads: Threads = field(init=False)

    def __post_init__(self) -> None:
        model = self.model
        assert model is not None, "another process makes it"
        self.recipe = model.model_json, model.optimization, model.task
        self.threads = Threads.now()

    def only(self, names: Sequence[str]) -> ClientTrainers:
        """Return what makes the trainers of these clients, with their examples alone."""
        return replace(self, examples={name: self.examples[name] for name in names})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": None}

    def __call__(self, name: str, plan: pb.Plan, manifest: Manifest, step: bytes | None) -> Trainer:
        """Return a client's trainer: LiteRT with a training step, Keras without one."""
        examples = self.examples[name]
        if step is not None:
            from featherfed.edge_client.litert_trainer import LitertTrainer

            # The step is this run's own.
            return LitertTrainer(plan, manifest, step, examples, client=name, trusted=True)
        model = self._model()
        from featherfed.edge_client.keras_trainer import KerasTrainer, LoopTrainer

        if self.loop is None:
            return KerasTrainer(plan, manifest, examples, client=name, model=model)
        return LoopTrainer(plan, manifest, examples, client=name, loop=self.loop, model=model)

    def _model(self) -> FederatedModel:
        if self.model is None:
            self.threads.use()
            from featherfed.models.optimized import FederatedModel

            self.model = FederatedModel(*self.recipe)
        return self.model
