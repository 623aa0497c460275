"""Draws what a sketch is from real updates, for docs/how-it-works.md; about a minute of one core.

Clients train the example's CNN on their shares of real digits; the second round's updates are
sketched at the size of `balanced`. Also writes the figures that the page tells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.average import Average, WeightedUpdate
from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.exchange.round import RoundContext, start_round
from featherfed.compression.exchange.update import (
    apply_update,
    decode_update,
    encode_update,
    subtract,
)
from featherfed.compression.hadamard import rotate
from featherfed.compression.key import Key
from featherfed.compression.quantizers import GROUP, Peaks
from featherfed.compression.registry import parse_codec
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.models.optimized import FederatedModel
from featherfed.models.serialization import to_json
from featherfed.models.zoo import build
from featherfed.report.style import BLUE, GREEN, MUTED, VERMILLION, WIDTH, save_png, styled
from featherfed.server.rounds.uplink import Uplink

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULT = ROOT / "benchmarks" / "results" / "sketch_pictures.json"
MODEL, DATA, EPOCHS, BATCH, LEARNING_RATE, ROUNDS = "cnn", "digits", 5, 32, 0.1, 7
COUNTS = (1, 2, 5, 10, 20, 40)
"""Numbers of clients whose mean is drawn."""
DRAWS = 8
"""Keys of a round that noise is averaged over."""


class Updates:
    """Real updates of a round: each of `clients` trains on its share of the digits."""

    def __init__(self, clients: int) -> None:
        train, test = load_train_test(DATA)
        self._shards = [train.take(i) for i in partition(train.labels, clients, "iid", 0)]
        self._model = FederatedModel(to_json(build(MODEL, test.input_shape, test.num_classes)))
        self.manifest: Manifest = self._model.manifest

    def of_second_round(self) -> list[list[Array]]:
        """Return each client's update of the second round, from the first one's mean."""
        start = initial_weights(self.manifest, 0)
        return self._train(apply_update(self.manifest, start, mean(self._train(start))))

    def _train(self, base: Sequence[Array]) -> list[list[Array]]:
        updates = []
        for number, shard in enumerate(self._shards):
            self._model.set_weights(list(base))
            self._model.fit(
                shard.inputs, shard.targets, epochs=EPOCHS, batch_size=BATCH,
                learning_rate=LEARNING_RATE, seed=number,
            )  # fmt: skip
            updates.append(subtract(self._model.get_weights(), base))
        return updates


class Sketches:
    """What becomes of updates that are sent as sketches."""

    def __init__(self, manifest: Manifest, clients: int, codec: str, draw: int) -> None:
        zeros = [np.zeros(spec.shape, np.float32) for spec in manifest]
        self._manifest, self._codec = manifest, codec
        self._round: RoundContext = start_round(manifest, zeros, 0.0).context(
            draw, 2, clients, None
        )
        self.bytes = 0

    def payload(self, slot: int, update: Sequence[Array]) -> bytes:
        """Return the sketch that the client in `slot` sends."""
        context = self._round.for_slot(slot)
        codec = parse_codec(self._codec)
        payload = encode_update(codec, self._manifest, update, context=context).payload
        self.bytes = len(payload)
        return payload

    def one(self, slot: int, update: Sequence[Array]) -> list[Array]:
        """Return one client's update as it arrives."""
        payload, codec = self.payload(slot, update), parse_codec(self._codec)
        context = self._round.for_slot(slot)
        return decode_update(codec, self._manifest, payload, context=context)

    def mean(self, updates: Sequence[Sequence[Array]]) -> list[Array]:
        """Return the mean of the sketches of all clients."""
        average = Average(self._manifest, self._round, len(updates))
        for slot, update in enumerate(updates):
            average.add(WeightedUpdate(slot, 1, self._codec, self.payload(slot, update)))
        return average.mean()


def mean(updates: Sequence[Sequence[Array]]) -> list[Array]:
    """Return the exact mean of some updates, tensor by tensor."""
    return [np.mean(tensors, axis=0, dtype=np.float32) for tensors in zip(*updates, strict=True)]


def energy(tensors: Sequence[Array]) -> float:
    """Return the sum of squares."""
    return sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in tensors)


def noise(found: Sequence[Array], updates: Sequence[Sequence[Array]]) -> float:
    """Return the noise in a mean of sketches: its energy, divided by that of an update."""
    return energy(subtract(found, mean(updates))) / float(np.mean([energy(u) for u in updates]))


def kernels(updates: list[list[Array]], manifest: Manifest, codec: str) -> Figure:
    """Draw the largest kernel of an update, of its sketch, of means of sketches and of updates."""
    sizes = [spec.size for spec in manifest]
    place = sizes.index(max(sizes))
    alone = Sketches(manifest, 1, codec, 0)
    panels = {
        "one client's update": updates[0],
        f"its sketch, {len(alone.payload(0, updates[0]))} bytes": alone.one(0, updates[0]),
        **{
            f"mean of {n} sketches": Sketches(manifest, n, codec, 0).mean(updates[:n])
            for n in (5, len(updates))
        },
        f"mean of {len(updates)} updates": mean(updates),
    }
    figure = Figure(figsize=(WIDTH, 3.4))
    grid = figure.subplots(1, len(panels))
    for axes, (title, tensors) in zip(grid, panels.items(), strict=True):
        tensor = tensors[place]
        matrix = tensor.reshape(-1, tensor.shape[-1])[:96]
        top = 3 * float(np.std(updates[0][place]))
        axes.imshow(matrix, cmap="RdBu", vmin=-top, vmax=top, aspect="auto", interpolation="none")
        axes.set(title=title, xticks=[], yticks=[])
        axes.grid(False)
    return figure


def noise_by_clients(
    updates: list[list[Array]], manifest: Manifest, codec: str
) -> dict[int, float]:
    """Return number of clients -> noise in the mean of as many sketches, the mean of some draws."""
    found = {}
    for count in COUNTS:
        some = updates[:count]
        draws = [Sketches(manifest, count, codec, draw).mean(some) for draw in range(DRAWS)]
        found[count] = float(np.mean([noise(each, some) for each in draws]))
    return found


def noise_figure(found: dict[int, float], size: int) -> Figure:
    """Draw how the noise in a mean of sketches falls with the number of clients."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    axes.loglog(list(found), list(found.values()), "o-", color=BLUE, label="measured")
    first = found[COUNTS[0]]
    axes.loglog(COUNTS, [first / n for n in COUNTS], "--", color=MUTED, label="1 / clients")
    axes.axhline(1, color=VERMILLION, linewidth=1, label="as much noise as update")
    axes.set(
        title=f"Noise in the mean of sketches of {size} bytes each",
        xlabel="clients", ylabel="energy of the noise / of an update", xticks=COUNTS,
        xticklabels=[str(count) for count in COUNTS], yticks=[0.1, 1, 10],
        yticklabels=["0.1", "1", "10"],
    )  # fmt: skip
    axes.minorticks_off()
    axes.legend()
    return figure


def rotation_figure(update: Sequence[Array]) -> Figure:
    """Draw some values before and after the rotation, and which of them are sent."""
    values = np.concatenate([tensor.ravel() for tensor in update])[:4096]
    rotated = rotate(values, Key.root(1))
    shown = 4 * GROUP
    sent = Peaks().levels(rotated)[:shown] != 0
    figure = Figure(figsize=(WIDTH, 3.6))
    before, after = figure.subplots(2, 1, sharex=True)
    places = np.arange(shown)
    before.bar(places, values[:shown], color=MUTED, width=0.9)
    before.set(title="Values of an update")
    colors = np.where(sent, GREEN, "#C9CED6")
    after.bar(places, rotated[:shown], color=colors.tolist(), width=0.9)
    after.set(title=f"After the rotation: of every {GROUP}, the largest is sent (green)")
    for edge in range(GROUP, shown, GROUP):
        after.axvline(edge - 0.5, color=MUTED, linewidth=0.8)
    return figure


def main() -> None:
    """Train, draw and write."""
    five = Updates(5)
    updates, manifest = five.of_second_round(), five.manifest
    codec = Uplink("balanced", manifest, ROUNDS).codec(5, 3)
    many = Updates(COUNTS[-1]).of_second_round()
    found = noise_by_clients(many, manifest, codec)
    sketches = Sketches(manifest, 5, codec, 0)
    sketches.payload(0, updates[0])
    with styled():
        save_png(kernels(many, manifest, codec), DOCS / "sketch-kernels.png")
        save_png(rotation_figure(updates[0]), DOCS / "sketch-rotation.png")
        save_png(noise_figure(found, sketches.bytes), DOCS / "sketch-noise.png")
    result = {
        "model": MODEL, "data": DATA, "parameters": manifest.num_values, "codec": codec,
        "float32_bytes": 4 * manifest.num_values, "sketch_bytes": sketches.bytes,
        "noise_by_clients": {str(count): round(each, 3) for count, each in found.items()},
        "draws": DRAWS,
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
