"""A transport whose answers have random fields changed to values that no server gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from support.hostile_server import MODEL, SEED, SEED_LINK, plan

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.round import start_round
from featherfed.compression.exchange.update import encode_update
from featherfed.compression.registry import parse_codec
from featherfed.edge_client.errors import Rejected
from featherfed.edge_client.partial_download import PartialDownload
from featherfed.proto import federation_pb2 as pb
from featherfed.proto.protocol import PROTOCOL

WHOLE = [0, 1, 2, 3, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
REAL = [0.0, -1.0, 0.5, 0.999999, float("nan"), float("inf"), -float("inf"), 1e300, 1e-300]
TEXTS = ["", "x\n", "y" * 10_000, "float32 | zstd", "sketch(1, 4, profile)", "quantize(1)", "eden"]
TEXTS += ["lowrank(9)", "topk(1.0) | topk(1.0)", "kmeans(8)", "trainable", "statistic", "prune"]
BYTES = [b"", bytes(32), b"x" * 100, bytes(4000)]
VALUES: dict[int, list[Any]] = {
    Field.TYPE_STRING: TEXTS,
    Field.TYPE_BYTES: BYTES,
    Field.TYPE_DOUBLE: REAL,
    Field.TYPE_FLOAT: REAL,
    Field.TYPE_BOOL: [False, True],
    Field.TYPE_ENUM: [0, 1, 2, 3, 99],
}
"""What a field of each type is changed to; of any other type, WHOLE."""
ZEROS = [np.zeros(spec.shape, np.float32) for spec in MODEL]
ROUND = start_round(MODEL, initial_weights(MODEL, 0), 0.0).context(0, 1, 3, None)
SKETCH = "sketch(0.01, 1, profile)"
FINISHED = pb.NextTaskReply(finished=pb.Finished(version=0, digest=SEED))


def payload(codec: str, context: Any) -> bytes:
    return encode_update(parse_codec(codec), MODEL, ZEROS, context=context).payload


BUNDLE = pb.Bundle(
    slots=3,
    codec=SKETCH,
    parts=[
        pb.Part(slot=1, num_examples=3, payload=payload(SKETCH, ROUND.for_slot(1))),
        pb.Part(slot=2, num_examples=3, codec="sign", payload=payload("sign", ROUND.for_slot(2))),
    ],
)
DELTA = payload("sign", ROUND.for_mean)
SNAPSHOT = payload("float32 | zstd", ROUND.for_mean)


class ChangedAnswers:
    """A `Transport` of a run of MODEL that would go well, if nothing were changed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._tasks = 0

    def join(self, request: pb.JoinRequest) -> Any:
        return self._changed(pb.JoinReply(session=1, plan=plan(), protocol=PROTOCOL))

    def next_task(self, session: int, has_scaling: bool = False) -> Any:
        self._tasks += 1
        codec = self._rng.choice(["float32 | zstd", "sketch(0.01)", "topk(0.1) | quantize(4)"])
        tasks = [
            pb.NextTaskReply(train=pb.Train(round=1, codec=codec, digest=SEED, slots=1)),
            pb.NextTaskReply(train=pb.Train(round=2, version=1, codec=codec, digest=SEED, slots=2)),
            pb.NextTaskReply(finished=pb.Finished(version=1, digest=SEED)),
        ]
        return FINISHED if self._tasks > 3 else self._changed(self._rng.choice(tasks))

    def fetch_model(self, request: pb.FetchModelRequest, limit: int) -> tuple[list[pb.Link], bytes]:
        chunk = self._changed(self._route(request.version))
        with PartialDownload(None, request, limit) as partial:
            if not partial.begin(chunk.links, chunk.offset) or len(chunk.data) > partial.announced:
                raise Rejected("not what it announced")
            partial.add(chunk.data)
            return partial.finish()

    def _route(self, version: int) -> pb.ModelChunk:
        if version == 0:
            return pb.ModelChunk(links=[SEED_LINK])
        bundle = self._changed(BUNDLE).SerializeToString()
        kind, codec, data = self._rng.choice(
            [
                (pb.Link.BUNDLE, "", bundle),
                (pb.Link.DELTA, "sign", DELTA),
                (pb.Link.SNAPSHOT, "float32 | zstd", SNAPSHOT),
            ]
        )
        link = pb.Link(kind=kind, version=1, digest=SEED, size=len(data), codec=codec)
        first = [] if kind == pb.Link.SNAPSHOT else [SEED_LINK]
        return pb.ModelChunk(links=[*first, link], data=data)

    def fetch_step(self, session: int, step: pb.Step) -> bytes:
        return bytes(100)

    def submit_update(self, header: pb.UpdateHeader, payload: bytes) -> Any:
        return self._changed(pb.SubmitReply(outcome=self._rng.choice([pb.ACCEPTED, pb.REFUSED])))

    def resume_update(self, header: pb.UpdateHeader) -> int:
        return 0

    def fetch_model_file(
        self, request: pb.FetchModelFileRequest, limit: int
    ) -> tuple[pb.ModelFile, bytes] | None:
        return None

    def report_ranges(self, report: pb.RangesReport) -> None:
        pass

    def heartbeat(self, session: int, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass

    def _changed(self, right: Any) -> Any:
        """Return a copy of a message with up to four of its fields changed."""
        message = type(right)()
        message.CopyFrom(right)
        for _ in range(self._rng.choice([0, 0, 1, 1, 2, 4])):
            parent, field = self._rng.choice(list(_fields(message)))
            if field.is_repeated:
                self._change_list(getattr(parent, field.name), field)
            elif field.message_type:
                parent.ClearField(field.name)
            else:
                setattr(parent, field.name, self._value(field))
        return message

    def _change_list(self, items: Any, field: Any) -> None:
        if items and self._rng.random() < 0.3:
            del items[self._rng.randrange(len(items))]
        elif field.message_type:
            items.extend(list(items) or [field.message_type._concrete_class()])
        else:
            items.append(self._value(field))

    def _value(self, field: Any) -> Any:
        return self._rng.choice(VALUES.get(field.type, WHOLE))


def _fields(message: Message) -> Iterator[tuple[Any, Any]]:
    """Yield all fields of a message and of the messages in it, each with its parent."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type:
            found = getattr(message, field.name)
            inner = found if field.is_repeated else [found] if message.HasField(field.name) else []
            for one in inner:
                yield from _fields(one)
