"""Who sent what: an enrolled client keeps all bundles of a run, and links and names their parts.

Sixteen clients with unequal shards of real digits and one that listens, ten rounds, the real
coordinator, sessions and codecs. A part is linked if it is matched to its own sender's part of the
round before, by one signal at a time, and named if it is matched to its sender's name.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

sys.path.insert(0, str(Path(__file__).parent.parent))  # attackers.py

from attackers import Perceptron, TestSetEvaluator
from support.evaluator import NO_CLIENT
from support.models import summary

from featherfed.compression.arrays import Array
from featherfed.compression.exchange.manifest import Manifest, TensorSpec, Uniform
from featherfed.compression.exchange.round import FULL_RATE, start_round
from featherfed.compression.exchange.update import decode_update
from featherfed.compression.registry import parse_codec
from featherfed.datasets.dataset import Dataset
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.session import Profile, Session
from featherfed.edge_client.state import ClientState, HeldModel
from featherfed.edge_client.versions import apply_links
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.settings.plan import make_plan
from featherfed.server.settings.settings import Settings
from featherfed.server.storage.store import Store
from featherfed.sweep.local import LocalServer, LocalTransport
from featherfed.tasks.task import image_task

CLIENTS, ROUNDS, SEED = 16, 10, 0
LISTENER = "listener"


def network(hidden: int) -> Manifest:
    """Return the tensors of a network for the digits with `hidden` units."""
    return Manifest((
        TensorSpec("hidden", (64, hidden), initial=Uniform(0.2)),
        TensorSpec("hidden_bias", (hidden,)),
        TensorSpec("out", (hidden, 10), initial=Uniform(0.1)), TensorSpec("out_bias", (10,)),
    ))  # fmt: skip


SKETCHES = {"uplink": "balanced", "downlink": "float16 | zstd"}
LARGEST = {"uplink": "topk(0.01) | quantize(4) | zstd", "downlink": "float32"}
DRAWS = 5  # ties are broken at random, so often

Costs = npt.NDArray[np.float64]


class Part(NamedTuple):
    """One forwarded update, as a listener sees it, and who sent it."""

    owner: str
    place: int
    weight: float
    size: int
    clip: int
    codec: str
    update: Array

    @property
    def norm(self) -> float:
        """The length of the update as it counts, unclipped."""
        return float(np.linalg.norm(self.update))


class Listener(LocalTransport):
    """The transport of an enrolled client that keeps all bundles."""

    def __init__(self, server: LocalServer) -> None:
        super().__init__(server)
        self.heard: list[tuple[list[pb.Link], bytes]] = []
        self.statuses: list[pb.StatusReply] = []

    def fetch_model(self, *asked: Any) -> tuple[list[pb.Link], bytes]:
        """Fetch, and keep what came; `asked`: the request, and since the mends a limit."""
        found = super().fetch_model(*asked)
        self.heard.append(found)
        return found

    def poll(self) -> None:
        """Ask for the status, as GetStatus answers it."""
        self.statuses.append(self._coordinator.status())


class Watched(LocalTransport):
    """The transport of a client whose updates the listener sees come, asking again and again."""

    def __init__(self, server: LocalServer, listener: Listener, old: bool) -> None:
        """`old`: whether the client knows no top-k."""
        super().__init__(server)
        self._listener = listener
        self._old = old

    def join(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Join; an old client with fewer stages."""
        if self._old:
            request.capabilities.stages.remove("topk")
        return super().join(request)

    def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        """Send an update; the listener asks for the status before and after."""
        self._listener.poll()
        reply = super().submit_update(header, payload)
        self._listener.poll()
        return reply


def shards(train: Dataset) -> dict[str, Dataset]:
    """Return each client's examples: eight times as many for the largest, of some classes more."""
    draw = np.random.default_rng(SEED)
    sizes = np.geomspace(1, 8, CLIENTS)
    sizes = np.rint(sizes / sizes.sum() * (len(train.labels) - 40)).astype(int)
    left = [list(draw.permutation(np.flatnonzero(train.labels == k))) for k in range(10)]
    found = {LISTENER: [group.pop() for group in left for _ in range(4)]}
    for i in draw.permutation(CLIENTS):
        odds = draw.dirichlet(np.full(10, 0.5))
        mine = found[f"c{i:02}"] = []
        while len(mine) < sizes[i]:
            here = odds * [bool(group) for group in left]
            here = here if here.sum() else np.array([float(len(group)) for group in left])
            mine.append(left[draw.choice(10, p=here / here.sum())].pop())
    return {name: train.take(np.array(sorted(mine))) for name, mine in sorted(found.items())}


class Eavesdropped(NamedTuple):
    """What a listener has after a run, and the truth."""

    rounds: list[list[Part]]
    statuses: list[pb.StatusReply]
    examples: dict[str, int]


def play(
    scratch: Path, model: Manifest, compression: dict[str, str], clip: float = 10, old: int = 0
) -> Eavesdropped:
    """Play a run; the last `old` clients know no top-k and so send the fallback codec."""
    scratch.mkdir()
    train, test = load_train_test("digits")
    parts = shards(train)
    settings = Settings.model_validate({
        "output": str(scratch), "rounds": ROUNDS, "seed": SEED, "compression": compression,
        "clients": {"minimum": len(parts), "quorum": 1.0}, "aggregation": {"clip": clip},
        "evaluation": {**NO_CLIENT, "dataset": "digits"},
    })  # fmt: skip
    store = Store(scratch / "run.db")
    task = image_task(test.input_shape, test.class_names)
    coordinator = Coordinator(
        settings, store, make_plan(settings, task, "{}", model), model, task,
        TestSetEvaluator(test), lambda: 0.0, secret=SEED,
    )  # fmt: skip
    server = LocalServer(coordinator)
    listener = Listener(server)
    sessions = []
    for i, (name, data) in enumerate(parts.items()):
        transport = listener if name == LISTENER else Watched(server, listener, i >= CLIENTS - old)
        trainer = Perceptron(data, "none", 100 * SEED + i)
        sessions.append(Session(
            Profile(name, summary(task, len(data)), "numpy", ("none",), "0"), transport,
            lambda plan, manifest, step, trainer=trainer: trainer,
            partial(ClientState, scratch / name),
        ))  # fmt: skip
    _take_part(server, sessions)
    owners = {
        (r, update.slot): update.client
        for r in range(1, ROUNDS + 1) for update in store.journal.updates(r)
    }  # fmt: skip
    store.close()
    examples = {name: len(data) for name, data in parts.items() if name != LISTENER}
    rounds = list(_overheard(model, listener.heard, owners))
    return Eavesdropped(rounds, listener.statuses, examples)


def _take_part(server: LocalServer, sessions: list[Session]) -> None:
    def run(session: Session) -> None:
        with server.lock:
            session.run()

    threads = [threading.Thread(target=run, args=(s,), daemon=True) for s in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _overheard(
    model: Manifest, heard: list[tuple[list[pb.Link], bytes]], owners: dict[tuple[int, int], str]
) -> Iterator[list[Part]]:
    """Yield the parts of every bundle but the listener's own, decoded."""
    held: HeldModel | None = None
    for links, data in heard:
        at = 0
        for link in links:
            payload = data[at : at + link.size]
            at += link.size
            if held is not None and link.kind == pb.Link.BUNDLE:
                yield list(_parts(model, held, link, pb.Bundle.FromString(payload), owners))
            held = apply_links(model, SEED, held, [link], payload)


def _parts(
    model: Manifest,
    held: HeldModel,
    link: pb.Link,
    bundle: pb.Bundle,
    owners: dict[tuple[int, int], str],
) -> Iterator[Part]:
    start = start_round(model, held.weights, link.sparsity)
    rate = bundle.server_rate or FULL_RATE
    context = start.context(SEED, link.version, bundle.slots, held.allocation, rate)
    total = sum(part.num_examples for part in bundle.parts)
    for place, part in enumerate(bundle.parts):
        codec = part.codec or bundle.codec
        update = decode_update(
            parse_codec(codec), model, part.payload, masks=start.masks,
            context=context.for_slot(part.slot),
        )  # fmt: skip
        owner = owners[link.version, part.slot]
        if owner != LISTENER:
            flat = np.concatenate([tensor.ravel() for tensor in update])
            weight = part.num_examples / total
            yield Part(owner, place, weight, len(part.payload), part.clip, codec, flat)


Signal = Callable[[list[Part], list[Part]], Costs]
"""What it costs to match each part of one round to each of another."""


def differences(signal: Callable[[Part], float]) -> Signal:
    """Return the signal that a figure of the parts differs."""

    def costs(one: list[Part], other: list[Part]) -> Costs:
        a, b = ([signal(part) for part in parts] for parts in (one, other))
        return np.abs(np.subtract.outer(np.array(a), np.array(b)))

    return costs


def directions(one: list[Part], other: list[Part]) -> Costs:
    """Return how much the updates of two rounds point elsewhere, beside the mean of each round."""
    rows = []
    for parts in (one, other):
        matrix = np.stack([part.update for part in parts])
        matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        matrix = matrix - matrix.mean(axis=0)
        rows.append(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
    return 1 - (rows[0] @ rows[1].T).astype(np.float64)


SIGNALS: dict[str, Signal] = {
    "weight": differences(lambda part: float(np.log2(part.weight))),
    "payload size": differences(lambda part: part.size),
    "clip": differences(lambda part: float(np.log2(part.clip or 65536))),
    "codec": differences(lambda part: float(len(part.codec))),
    "order": differences(lambda part: part.place),
    "norm": differences(lambda part: float(np.log2(part.norm))),
    "direction": directions,
    "opposite direction": lambda one, other: 2 - directions(one, other),
}


def matched(costs: Costs) -> Iterator[tuple[int, int]]:
    """Yield the pairs (row, column) of the best matching, for several ways to break ties."""
    draw = np.random.default_rng(SEED)
    for _ in range(DRAWS):
        rows, columns = linear_sum_assignment(costs**2 + 1e-9 * draw.random(costs.shape))
        yield from zip(rows.tolist(), columns.tolist(), strict=True)


def share(hits: list[bool]) -> float:
    """Return the share of hits."""
    return round(float(np.mean(hits)), 3)


def linked(rounds: list[list[Part]], signal: Signal) -> float:
    """Return the share of parts that are matched to their own sender's of the round before."""
    hits = []
    for before, after in itertools.pairwise(rounds):
        pairs = matched(signal(before, after))
        hits += [before[i].owner == after[k].owner for i, k in pairs]
    return share(hits)


def recognized(rounds: list[list[Part]], signal: Signal) -> float:
    """Return the share of parts whose sender is told by a listener that knows all rounds before.

    By `signal` with the last of them or with all, with or without directions: what tells most.
    """
    hits: list[list[bool]] = [[], [], []]
    for number in range(1, len(rounds)):
        now = rounds[number]
        known = [sorted(parts, key=lambda part: part.owner) for parts in rounds[:number]]
        last = standard(signal(known[-1], now))
        past = standard(np.mean([signal(parts, now) for parts in known], axis=0))
        ways = standard(np.mean([directions(parts, now) for parts in known], axis=0))
        for told, costs in zip(hits, (last, past, last + ways), strict=True):
            pairs = matched(costs - costs.min())
            told += [known[-1][i].owner == now[k].owner for i, k in pairs]
    return max(share(told) for told in hits)


def standard(costs: Costs) -> Costs:
    """Return costs in units of their deviation."""
    return costs / (costs.std() or 1)


def everything(rounds: list[list[Part]]) -> Signal:
    """Return all signals together, each in units of its deviation and as strong as it is alone."""
    strength = {name: linked(rounds, signal) for name, signal in SIGNALS.items()}

    def costs(one: list[Part], other: list[Part]) -> Costs:
        total = np.zeros((len(one), len(other)))
        for name, signal in SIGNALS.items():
            total += max(0, strength[name] - 1 / CLIENTS) * standard(signal(one, other))
        return total

    return costs


def named_by_weight(rounds: list[list[Part]], examples: dict[str, int]) -> float:
    """Return the share of parts that weights name, for one who knows everybody's examples."""
    names, hits = list(examples), []
    known = np.log2([examples[name] for name in names])
    for parts in rounds:
        weights = np.log2([part.weight for part in parts])
        costs = np.subtract.outer(weights - weights.mean(), known - known.mean())
        hits += [parts[i].owner == names[k] for i, k in matched(costs)]
    return share(hits)


def named_by_status(run: Eavesdropped) -> float:
    """Return the share of parts that are named by weight and the status' names and examples."""
    told = {client.client: client.num_examples for client in told_of(run.statuses[0])}
    told = {name: told[name] for name in run.examples if told.get(name)}
    if len(told) < len(run.examples):
        return round(1 / CLIENTS, 3)  # nothing to go by
    return named_by_weight(run.rounds, told)


def named_by_arrival(run: Eavesdropped) -> float:
    """Return the share of parts that the status named when they came: a state, and more bytes."""
    came: dict[int, dict[str, int]] = {}
    for before, after in itertools.pairwise(run.statuses):
        was = {client.client: client.state for client in told_of(before)}
        for client in told_of(after):
            if (was[client.client], client.state) == ("training", "reported"):
                size = after.uplink_bytes - before.uplink_bytes
                came.setdefault(after.round, {})[client.client] = size
    if not came:
        return round(1 / CLIENTS, 3)
    hits = []
    for number, parts in enumerate(run.rounds, 1):
        names = [name for name in run.examples if name in came.get(number, {})]
        sizes = [float(came[number][name]) for name in names]
        costs = np.subtract.outer([float(part.size) for part in parts], sizes)
        hits += [parts[i].owner == names[k] for i, k in matched(costs)]
    return share(hits)


def told_of(status: pb.StatusReply) -> list[Any]:
    """Return the clients that a status names; now it has no such field."""
    clients = getattr(status, "clients", ())
    return [client for client in clients if "client" in client.DESCRIPTOR.fields_by_name]


def measure(scratch: Path) -> dict[str, Any]:
    """Return the share of parts that are linked or named, by signal; by chance it is 1 in 16."""
    logging.getLogger("featherfed").setLevel(logging.ERROR)
    figures: dict[str, Any] = {"by chance, share of parts": round(1 / CLIENTS, 3)}
    for name, run in {
        "sketches": play(scratch / "sketches", network(512), SKETCHES),
        "top-k and clip 1": play(scratch / "topk", network(128), LARGEST, clip=1),
        "top-k and 2 clients of another codec": play(
            scratch / "mixed", network(128), LARGEST, old=2
        ),
    }.items():
        figures[f"{name}: rounds forwarded"] = len(run.rounds)
        figures[f"{name}: parts named by"] = _named(run) if run.rounds else None
        figures[f"{name}: parts linked by"] = _linked(run.rounds) if run.rounds else None
    return figures


def _named(run: Eavesdropped) -> dict[str, float]:
    return {
        "status and weight": named_by_status(run),
        "status as they come": named_by_arrival(run),
        "weight, examples known": named_by_weight(run.rounds, run.examples),
    }


def _linked(rounds: list[list[Part]]) -> dict[str, float]:
    together = everything(rounds)
    return {
        **{name: linked(rounds, signal) for name, signal in SIGNALS.items()},
        "all": linked(rounds, together),
        "all, if all rounds before are known": recognized(rounds, together),
    }
