"""Measures how much of a round's progress a sketch keeps under several allocations of its bits.

From a model after one round, the second round's updates are sketched at the size of `balanced`, and
their mean is applied. The measure is the drop of the test loss (a smaller error of the mean is not
a smaller loss), as a share of what the exact mean gains. Part of `make bench`; about ten minutes.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import Average, WeightedUpdate
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.round import RoundContext, start_round
from featherfed.compression.exchange.update import (
    apply_update,
    encode_update,
    sketched_shapes,
    subtract,
)
from featherfed.compression.importance import (
    LEVELS,
    Allocation,
    Report,
    equal_importance,
    measure_importance,
    merge_reports,
)
from featherfed.compression.registry import parse_codec
from featherfed.compression.sketch import Sketch
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.models.optimized import FederatedModel
from featherfed.models.serialization import to_json
from featherfed.models.zoo import build
from featherfed.server.rounds.uplink import Uplink

RESULT = Path(__file__).parent / "results" / "allocation.json"
CLIENTS, ROUNDS, EPOCHS, BATCH = 5, 7, 5, 32
DRAWS = 8
CASES = [
    ("cnn", "fashion-mnist", 0.01),
    ("mlp", "fashion-mnist", 0.01),
    ("mobile", "digits", 0.1),
    ("gru", "digits", 0.1),
]
HAND_MADE = (2.1e-3, 2.9e-3, 3e-4, 1.1e-3, 6.2e-5, 1.9e-4, 1.6e-3, 1.5e-3)
"""sqrt(curvature) * rms of the cnn's tensors, measured once by probing the loss on its data."""


def allocations(before: list[list[Array]], name: str) -> dict[str, Allocation]:
    """Return the allocations to compare, from the trained tensors of the first round's updates."""
    shapes = [tensor.shape for tensor in before[0]]
    reports = []
    for slot, update in enumerate(before):
        own = measure_importance(update)
        reports.append(Report(slot, CLIENTS, own.levels, own.profile[slot::CLIENTS]))
    run = merge_reports(None, reports, shapes)
    assert run is not None
    known = {
        "all equal": equal_importance(shapes),
        "by tensor, from the run": Allocation(run.levels, equal_importance(shapes).profile),
        "by tensor, row and column, from the run": run,
    }
    if name == "cnn":
        top = max(HAND_MADE)
        levels = bytes(LEVELS - 1 + round(2 * math.log2(c / top)) for c in HAND_MADE)
        known["by tensor, hand-made table"] = Allocation(levels, equal_importance(shapes).profile)
    return known


def measure_model(name: str, dataset: str, learning_rate: float) -> dict[str, object]:
    """Train two rounds uncompressed; return the share of the second that each allocation keeps."""
    train, test = load_train_test(dataset)
    shards = [train.take(i) for i in partition(train.labels, CLIENTS, "iid", 0)]
    model = FederatedModel(to_json(build(name, test.input_shape, test.num_classes)))
    manifest = model.manifest
    weights = model.get_weights() if model.unseeded else initial_weights(manifest, 0)
    trained = [i for i, spec in enumerate(manifest) if spec.role == "trainable"]

    def updates(base: list[Array], round_: int) -> list[list[Array]]:
        result = []
        for number, shard in enumerate(shards):
            model.set_weights(base)
            model.fit(
                shard.inputs, shard.targets, epochs=EPOCHS, batch_size=BATCH,
                learning_rate=learning_rate, seed=CLIENTS * round_ + number,
            )  # fmt: skip
            result.append(subtract(model.get_weights(), base))
        return result

    def loss_after(
        base: list[Array], codec: str, sent: list[list[Array]], shared: RoundContext
    ) -> float:
        mean = Average(manifest, shared, sum(map(len, shards)))
        for slot, update in enumerate(sent):
            context = shared.for_slot(slot)
            payload = encode_update(parse_codec(codec), manifest, update, context=context).payload
            mean.add(WeightedUpdate(slot, len(shards[slot]), codec, payload))
        model.set_weights(apply_update(manifest, base, mean.mean()))
        return model.evaluate(test.inputs, test.targets)["loss"]

    first = updates(weights, 1)
    plain = start_round(manifest, weights, 0).context(0, 1, CLIENTS, None)
    loss_after(weights, "float32", first, plain)
    base = model.get_weights()
    start = start_round(manifest, base, 0)
    before = model.evaluate(test.inputs, test.targets)["loss"]
    second = updates(base, 2)
    exact = loss_after(base, "float32", second, plain)

    balanced = parse_codec(Uplink("balanced", manifest, ROUNDS).codec(CLIENTS, 3))
    assert isinstance(balanced, Sketch)
    codec = str(Sketch(balanced.density))
    kept = {}
    known = allocations([[update[i] for i in trained] for update in first], name)
    for label, allocation in known.items():
        allocation.check(sketched_shapes(manifest))
        shares = []
        for draw in range(DRAWS):
            shared = start.context(draw, 2, CLIENTS, allocation)
            shares.append((before - loss_after(base, codec, second, shared)) / (before - exact))
        kept[label] = {"mean": statistics.mean(shares), "stdev": statistics.stdev(shares)}
        print(name, codec, label, {k: round(v, 3) for k, v in kept[label].items()}, flush=True)
    return {"model": name, "dataset": dataset, "codec": codec, "draws": DRAWS, "kept": kept}


def main() -> None:
    """Measure every model and write the result."""
    np.seterr(all="raise", under="ignore")
    results = [measure_model(*case) for case in CASES]
    RESULT.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
