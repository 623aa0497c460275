"""Exports the training steps in tests/support/steps, for 8x8 digits and batches of 4.

`PYTHONPATH=tests python tests/support/export_steps.py` writes them all anew, which the format
or another `VERSION` of the exporter asks for. Seeds that tests name hold for these very files:
`step_mutations.py --unchecked` finds others.
"""

from __future__ import annotations

from backports import zstd
from support.models import SHAPE
from support.step_mutations import BATCH, FOLDER, SUFFIX

from featherfed.exporter.training_step import TrainingStepOptions, export_training_step
from featherfed.models.method import Optimization
from featherfed.models.optimized import FederatedModel
from featherfed.models.zoo import build
from featherfed.proto.plan_terms import Method, Optimizer

STEPS = {
    "cnn-prune-momentum": ("cnn", Method.PRUNE, Optimizer.MOMENTUM),
    "gru-none-sgd": ("gru", Method.NONE, Optimizer.SGD),
    "mlp-none-adam": ("mlp", Method.NONE, Optimizer.ADAM),
    "mlp-qat-sgd": ("mlp", Method.QAT, Optimizer.SGD),
    "mobile-none-sgd": ("mobile", Method.NONE, Optimizer.SGD),
}
"""File name -> model, method and optimizer."""


def _main() -> None:
    for name, (architecture, method, optimizer) in STEPS.items():
        model = FederatedModel(build(architecture, SHAPE, 10), Optimization(method))
        step = export_training_step(model, TrainingStepOptions(BATCH, optimizer))
        (FOLDER / f"{name}{SUFFIX}").write_bytes(zstd.compress(step, 19))


if __name__ == "__main__":
    _main()
