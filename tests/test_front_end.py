"""Calls that reach a server that does not lead: passed on as they are, and nobody is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.federation import Federation
from support.kills import (
    check_acks,
    numpy_processes,
    numpy_spec,
    outcome,
    outcome_in_postgres,
)
from support.ports import free_port
from support.postgres import PostgresServer
from support.processes import program, status, wait_until

from featherfed.api.front_end import StandbyCalls
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.server.rpc.callers import Callers
from featherfed.server.rpc.forwarded import PEER_KEY, SECRET_KEY, forwarded_peer
from featherfed.server.settings.settings import LimitSettings
from featherfed.server.storage.postgres_address import Leader
from featherfed.server.storage.store import Store

Start = Callable[..., Federation]
SECRET = "what front ends show"


@pytest.fixture
def led(federation: Start, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """A server whose callers may come by a front end."""
    monkeypatch.setattr(Store, "front_secret", SECRET)
    return federation(rounds=2)


@pytest.fixture
def front(led: Federation) -> Iterator[StandbyCalls]:
    calls = StandbyCalls(led.settings)
    calls.follow(Leader(led.address, SECRET))
    yield calls
    calls.close()


def test_a_whole_run_through_a_front_end(led: Federation, front: StandbyCalls) -> None:
    assert front.port != int(led.address.rpartition(":")[2])

    def transport() -> GrpcTransport:
        return GrpcTransport(f"127.0.0.1:{front.port}", give_up_after=10)

    clients = [led.client(f"c{i}", value=i / 3, transport=transport()) for i in range(3)]
    held = led.run_clients(*clients)
    assert {h.digest for h in held} == {led.store.versions.newest().digest}
    assert led.store.versions.newest().version == 2
    entries = led.store.ledger.entries()
    assert {e.kind for e in entries} == {"transfer", "control"}, "nothing was sent twice"


def test_refusals_come_back_as_they_were(led: Federation, front: StandbyCalls) -> None:
    request = pb.NextTaskRequest(session=12345)
    found = []
    for address in (led.address, f"127.0.0.1:{front.port}"):
        with grpc.insecure_channel(address) as channel:
            with pytest.raises(grpc.RpcError) as told:
                pb_grpc.FederationStub(channel).NextTask(request, timeout=10)
            found.append((told.value.code(), told.value.details()))
    assert found[0] == found[1]
    assert found[0][0] is grpc.StatusCode.UNAUTHENTICATED


def test_nobody_is_believed_without_the_secret(led: Federation, front: StandbyCalls) -> None:
    forged = ((SECRET_KEY, "a guess"), (PEER_KEY, "ipv4:10.0.0.1:1"))
    assert forwarded_peer(forged, SECRET) is None
    assert forwarded_peer(((SECRET_KEY, SECRET), (PEER_KEY, "x")), SECRET) == "x"
    with grpc.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        stub = pb_grpc.FederationStub(channel)
        with pytest.raises(grpc.RpcError) as told:
            stub.GetStatus(pb.StatusRequest(), metadata=forged, timeout=10)
    assert told.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_leader_counts_each_caller_by_its_own_address() -> None:
    class Call:
        def __init__(self, *metadata: tuple[str, str]) -> None:
            self.metadata = metadata

        def peer(self) -> str:
            return "ipv4:192.0.2.1:5"

        def peer_identities(self) -> None:
            return None

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return self.metadata

    callers: Any = Callers(None, None, LimitSettings(), SECRET)  # type: ignore[arg-type]
    named = (PEER_KEY, "ipv4:198.51.100.7:9")
    for metadata, key in (
        ((), "192.0.2.1"),
        ((named,), "192.0.2.1"),
        (((SECRET_KEY, "a guess"), named), "192.0.2.1"),
        (((SECRET_KEY, SECRET), named), "198.51.100.7"),
    ):
        assert callers.connected_peer(Call(*metadata)).key == key
    callers = Callers(None, None, LimitSettings())  # type: ignore[arg-type]
    for secret in ("", SECRET):
        assert callers.connected_peer(Call((SECRET_KEY, secret), named)).key == "192.0.2.1"


def test_without_a_leader_calls_are_to_be_tried_again(front: StandbyCalls) -> None:
    front.follow(None)
    with (
        grpc.insecure_channel(f"127.0.0.1:{front.port}") as channel,
        pytest.raises(grpc.RpcError, match="no server leads the run now") as told,
    ):
        pb_grpc.FederationStub(channel).GetStatus(pb.StatusRequest(), timeout=10)
    assert told.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow  # processes that are killed, on PostgreSQL
def test_clients_of_a_front_end_survive_the_death_of_each_server(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    rounds, clients, codec = 4, 2, "topk(0.05) | quantize(4) | zstd"
    with numpy_processes(tmp_path / "alone", numpy_spec(codec, rounds, clients), clients) as alone:
        alone.wait(120)
    wanted = outcome(tmp_path / "alone" / "run.db")
    dsn, folder, front = postgres.new_database(), tmp_path / "run", free_port()
    spec = numpy_spec(
        codec, rounds, clients, seconds=0.2, hold_last_round=True, postgres=dsn,
        address=f"127.0.0.1:{front}",
    )  # fmt: skip

    def logged(name: str, text: str) -> int:
        return (folder / f"{name}.log").read_text("utf-8").count(text)

    with numpy_processes(folder, spec, clients) as processes:
        processes.commands = {
            **processes.commands,
            "front": program("numpy_federation", "server", str(folder), str(front)),
        }
        wait_until(lambda: logged("server", "begins"))
        processes.start("front")
        wait_until(lambda: logged("c0", "") and status(f"127.0.0.1:{front}").version >= 2)
        assert not logged("front", "taking over"), "all went through the front end"
        processes.kill("server")
        wait_until(lambda: logged("front", "goes on"))
        processes.start("server")
        wait_until(lambda: logged("server", "for the server that leads"))
        processes.kill("front")
        wait_until(lambda: logged("server", "goes on"))
        processes.start("front")
        (folder / "over").touch()
        processes.wait(120)
    left = outcome_in_postgres(dsn, tmp_path / "copy")
    assert (left.digests, left.journal) == (wanted.digests, wanted.journal)
    assert check_acks(folder, left) >= rounds * clients - 1
