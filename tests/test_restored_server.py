"""Clients of a server that was put back to a backup, and made later versions anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.clients import Pull
from support.models import MANIFEST, TASK

from featherfed.compression.exchange.initial_weights import initial_weights
from featherfed.compression.exchange.manifest import weights_digest
from featherfed.edge_client.errors import ClientError, Rejected, StaleTask
from featherfed.edge_client.evaluation import OwnEvaluation
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.model_sync import ModelSync
from featherfed.edge_client.partial_download import PartialDownload
from featherfed.edge_client.scaling import OwnScaling
from featherfed.edge_client.session import TaskHandler
from featherfed.edge_client.state import ClientState, HeldModel, PendingUpdate
from featherfed.edge_client.update_sender import UpdateSender
from featherfed.proto import federation_pb2 as pb

ASKED = pb.FetchModelRequest(session=1, version=3, have_version=2)
LIMIT = 1000


def link(digest: bytes) -> pb.Link:
    return pb.Link(kind=pb.Link.DELTA, version=3, digest=digest, size=8)


@pytest.fixture
def transport(tmp_path: Path) -> Iterator[GrpcTransport]:
    """A transport whose kept part of a download is of links that the server has forgotten."""
    path = tmp_path / "model.part"
    with contextlib.suppress(KeyError), PartialDownload(path, ASKED, LIMIT) as part:
        part.begin([link(b"before")], 0)
        part.add(b"abcde")
        raise KeyError
    made = GrpcTransport("127.0.0.1:1", 1.0, None, path)
    yield made
    made.close()


def serving(answer: Callable[[pb.FetchModelRequest], int]) -> Any:
    """Return a stub whose server sends the new version from the byte that `answer` gives."""

    def fetch(ask: pb.FetchModelRequest, timeout: float) -> Iterator[pb.ModelChunk]:
        begin = answer(ask)
        yield pb.ModelChunk(links=[link(b"after")], data=b"ABCDEFGH"[begin:], offset=begin)

    return SimpleNamespace(FetchModel=fetch)


def test_a_download_of_other_links_begins_anew(transport: GrpcTransport) -> None:
    transport._stub = serving(lambda ask: min(ask.offset, 3))  # it sent three bytes before
    links, data = transport.fetch_model(ASKED, LIMIT)
    assert (links[0].digest, data) == (b"after", b"ABCDEFGH")


def test_a_server_that_skips_the_beginning_is_refused(transport: GrpcTransport) -> None:
    transport._stub = serving(lambda ask: 3)
    with pytest.raises(Rejected, match="never began"):
        transport.fetch_model(ASKED, LIMIT)


def test_a_task_of_a_forgotten_version_is_out_of_date_once(tmp_path: Path) -> None:
    first = weights_digest(initial_weights(MANIFEST, 0))
    seed = pb.Link(kind=pb.Link.SEED, version=0, digest=first)
    server = SimpleNamespace(fetch_model=lambda request, limit: ([seed], b""))
    model = ModelSync(server, 1, MANIFEST, 0, ClientState(tmp_path, "run"))  # type: ignore[arg-type]
    with pytest.raises(StaleTask, match="another model than version 0"):
        model.catch_up(0, b"forgotten")
    with pytest.raises(ClientError, match="another model than version 0"):
        model.catch_up(0, b"forgotten")
    assert model.catch_up(0, first).digest == first


def test_an_update_from_a_forgotten_version_is_not_sent(tmp_path: Path) -> None:
    state = ClientState(tmp_path, "run")
    first = initial_weights(MANIFEST, 0)
    state.save_held(HeldModel(0, weights_digest(first), first))
    other = [w + np.float32(1) for w in first]
    state.save_pending(PendingUpdate(1, 0, 100, 0.5, b"forgotten", other, other))
    seed = pb.Link(kind=pb.Link.SEED, version=0, digest=weights_digest(first))
    sent: list[bytes] = []

    def submit(header: pb.UpdateHeader, payload: bytes) -> pb.SubmitReply:
        sent.append(payload)
        return pb.SubmitReply(outcome=pb.ACCEPTED)

    server: Any = SimpleNamespace(
        fetch_model=lambda request, limit: ([seed], b""), submit_update=submit
    )
    trainer = Pull(1.0)
    handler = TaskHandler(
        MANIFEST, 0, state, ModelSync(server, 1, MANIFEST, 0, state), trainer,
        OwnScaling(TASK, trainer), OwnEvaluation(trainer, 0), UpdateSender(server, 1, state),
        lambda: 100,
    )  # fmt: skip
    task = pb.Train(round=1, codec="float32", digest=weights_digest(first), slots=1)
    handler.handle(task)
    assert sent == [b"forgotten"], "it started from this version: the server knows what to do"
    state.save_pending(PendingUpdate(1, 0, 100, 0.5, b"forgotten", other, other))
    with pytest.raises(StaleTask):
        handler.handle(pb.Train(round=1, codec="float32", digest=b"anew", slots=1))
    assert sent == [b"forgotten"]
    assert state.pending() is None
    residual = state.residual()
    assert residual is not None
    assert np.array_equal(residual[0], other[0]), "all of it goes on in the residual"
