"""Certificates and tokens: who is let in, who is refused, and the errors that both sides show."""

from __future__ import annotations

import datetime
import logging
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from support.clients import profile
from support.federation import Federation
from support.processes import Processes, run, wait_until

from featherfed.api.device import device_name
from featherfed.api.serve_settings import serve_settings
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client import credentials as device
from featherfed.edge_client.credentials import Credentials, choose_credentials, load_credentials
from featherfed.edge_client.errors import ClientError, Rejected, Unreachable
from featherfed.edge_client.grpc_releases import GrpcReleaseSource
from featherfed.edge_client.grpc_transport import GrpcTransport
from featherfed.edge_client.handshake import diagnose
from featherfed.proto import federation_pb2 as pb
from featherfed.proto import federation_pb2_grpc as pb_grpc
from featherfed.proto.protocol import PROTOCOL
from featherfed.server.access import authority as authority_module
from featherfed.server.access import certificates
from featherfed.server.access.authority import Authority
from featherfed.server.errors import ServerError
from featherfed.server.settings.settings import SecuritySettings, Settings

NAMES = ("attic", "cellar", "kitchen")
SECOND = 1 / 86400


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority with three enrolled devices."""
    made = Authority(tmp_path / "certs")
    made.create([])
    made.enrol(NAMES)
    return made


@pytest.fixture
def served(federation: Callable[..., Federation], authority: Authority) -> Federation:
    return serve(federation, authority)


def serve(start: Callable[..., Federation], authority: Authority, **more: object) -> Federation:
    return start(security={"credentials": str(authority.folder), **more})


def of(authority: Authority, name: str) -> Credentials:
    return load_credentials(authority.folder / "clients" / name)


def talk(
    federation: Federation, proof: Credentials | None, give_up_after: float = 60
) -> GrpcTransport:
    return GrpcTransport(federation.address, give_up_after, proof)


def refusal(federation: Federation, proof: Credentials | None) -> str:
    """Return why a client that asks for the status is sent away; not for want of an answer."""
    transport = talk(federation, proof)
    try:
        with pytest.raises(Rejected) as raised:
            transport.status()
    finally:
        transport.close()
    return str(raised.value)


def reasons(federation: Federation) -> list[tuple[str, str]]:
    return [(row.client, row.reason) for row in federation.store.refusals.all()]


def join_request(name: str) -> pb.JoinRequest:
    data = profile(name).data
    capabilities = pb.Capabilities(stages=["quantize", "zstd"], methods=["none"], protocol=PROTOCOL)
    return pb.JoinRequest(client=name, data=data, capabilities=capabilities)


# ---- a run with credentials ----


def test_a_run_with_credentials_gives_the_same_model_and_bytes(
    served: Federation, federation: Callable[..., Federation], authority: Authority
) -> None:
    plain = federation("plain")
    held = served.run_clients(
        *(
            served.client(n, i, transport=talk(served, of(authority, n)))
            for i, n in enumerate(NAMES)
        )
    )
    open_ = plain.run_clients(*(plain.client(n, i) for i, n in enumerate(NAMES)))
    assert {h.digest for h in held} == {h.digest for h in open_}
    assert reasons(served) == []
    sent = [
        {
            (e.client, e.direction): e.payload_bytes
            for e in one.store.ledger.entries()
            if e.kind == "transfer"
        }
        for one in (served, plain)
    ]
    assert sent[0] == sent[1]


def test_tokens_alone_do_if_the_server_asks_for_no_certificates(
    federation: Callable[..., Federation], authority: Authority
) -> None:
    server = serve(federation, authority, client_certificates=False)
    folder = authority.folder / "clients" / "attic"
    (folder / "client.pem").unlink()
    (folder / "client-key.pem").unlink()
    talk(server, load_credentials(folder)).status()
    (folder / "token").write_text("attic.wrong", "utf-8")
    assert "not enrolled here" in refusal(server, load_credentials(folder))


def test_a_device_follows_under_its_own_name_only(served: Federation, authority: Authority) -> None:
    source = GrpcReleaseSource(served.address, 60, of(authority, "attic"))
    request = pb.FetchReleaseRequest(device="attic")
    assert source.fetch_release(request, 2**20) is None, "nothing yet"
    request.device = "kitchen"
    with pytest.raises(Rejected, match=r"WRONG_IDENTITY.*belong to 'attic'"):
        source.fetch_release(request, 2**20)


def test_nobody_joins_or_acts_as_another(served: Federation, authority: Authority) -> None:
    attic, kitchen = (talk(served, of(authority, n)) for n in ("attic", "kitchen"))
    with pytest.raises(Rejected, match=r"WRONG_IDENTITY.*belong to 'attic'"):
        attic.join(join_request("kitchen"))
    session = kitchen.join(join_request("kitchen")).session
    header = pb.UpdateHeader(session=session, round=1, num_examples=1, size=1)
    forged: list[Callable[[], object]] = [
        lambda: attic.next_task(session),
        lambda: attic.fetch_model(pb.FetchModelRequest(session=session), 1000),
        lambda: attic.fetch_step(session, pb.Step(digest=b"x" * 32, size=1, compressed=1)),
        lambda: attic.submit_update(header, b"x"),
    ]
    for call in forged:
        with pytest.raises(Rejected, match="WRONG_IDENTITY"):
            call()
    assert set(reasons(served)) == {("attic", "WRONG_IDENTITY")}


def test_every_call_of_a_stranger_is_refused(served: Federation, authority: Authority) -> None:
    """Also those that no session guards, and those of health checking and reflection."""
    credentials = of(authority, "attic")
    secure = grpc.ssl_channel_credentials(
        credentials.authorities, credentials.key, credentials.certificate
    )
    options = [("grpc.ssl_target_name_override", device.SERVER_NAME)]
    with grpc.secure_channel(served.address, secure, options) as channel:
        stub = pb_grpc.FederationStub(channel)
        chunks = [pb.UpdateChunk()]
        calls: list[Callable[[], object]] = [
            lambda: stub.GetTask(pb.GetTaskRequest(client="attic")),
            lambda: stub.Join(join_request("attic")),
            lambda: stub.NextTask(pb.NextTaskRequest()),
            lambda: list(stub.FetchModel(pb.FetchModelRequest())),
            lambda: stub.SubmitUpdate(iter(chunks)),
            lambda: stub.ResumeUpload(pb.ResumeUploadRequest()),
            lambda: stub.ReportEvaluation(pb.EvaluationReport()),
            lambda: stub.ReportRanges(pb.RangesReport()),
            lambda: list(stub.FetchModelFile(pb.FetchModelFileRequest())),
            lambda: stub.Heartbeat(pb.HeartbeatRequest()),
            lambda: list(stub.FetchStep(pb.FetchStepRequest())),
            lambda: list(stub.FetchRelease(pb.FetchReleaseRequest(device="attic"))),
            lambda: stub.GetStatus(pb.StatusRequest()),
            lambda: channel.unary_unary("/grpc.health.v1.Health/Check")(b""),
            lambda: list(
                channel.stream_stream(
                    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
                )(iter([b""]))
            ),
        ]
        assert len(calls) - 2 == len(pb.DESCRIPTOR.services_by_name["Federation"].methods)
        for call in calls:
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "no enrolment token" in raised.value.details()
    assert set(reasons(served)) == {("(stranger)", "BAD_TOKEN")}


def test_health_checks_and_reflection_are_there_for_the_enrolled(
    served: Federation, authority: Authority
) -> None:
    stub = talk(served, of(authority, "attic"))
    watch = stub._channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
    assert next(watch) == b"\x08\x01", "serving"
    watch.cancel()
    reflect = stub._channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    (listed,) = reflect(iter([b"\x3a\x00"]))
    assert b"featherfed.v1.Federation" in listed


# ---- what is wrong, said to the client ----


def test_an_unknown_token(served: Federation, authority: Authority) -> None:
    assert "BAD_TOKEN: this token is not enrolled here" in refusal(
        served, replace(of(authority, "attic"), token="attic.guess")
    )
    assert reasons(served) == [("(stranger)", "BAD_TOKEN")]


def test_the_token_of_another_name(served: Federation, authority: Authority) -> None:
    mixed = replace(of(authority, "attic"), token=of(authority, "kitchen").token)
    said = refusal(served, mixed)
    assert "WRONG_IDENTITY: the token belongs to 'kitchen', the certificate to 'attic'" in said
    assert reasons(served) == [("(stranger)", "WRONG_IDENTITY")]


def test_a_certificate_that_was_replaced(served: Federation, authority: Authority) -> None:
    before = of(authority, "attic")
    authority.enrol(["attic"], renew=True)
    assert "was replaced" in refusal(served, before)
    mixed = replace(before, token=of(authority, "attic").token)
    assert "the certificate to nobody who is enrolled (any more)" in refusal(served, mixed)
    talk(served, of(authority, "attic")).status()


def test_an_expired_client_certificate(served: Federation, authority: Authority) -> None:
    authority.enrol(["old"], days=-SECOND)
    folder = authority.folder / "clients" / "old"
    with pytest.raises(ClientError, match=r"client.pem has expired \(this device's clock says"):
        load_credentials(folder)
    assert "has expired" in refusal(served, unchecked(folder))


def test_an_expired_server_certificate(
    federation: Callable[..., Federation], authority: Authority
) -> None:
    authority.rotate(days=8 * SECOND)
    server = serve(federation, authority)
    talk(server, of(authority, "attic")).status()
    time.sleep(max(0.0, authority.server_expires().timestamp() - time.time()) + 0.5)
    said = refusal(server, of(authority, "attic"))
    assert "the server's certificate has expired" in said
    assert "featherfed certs rotate" in said


def test_an_expired_server_certificate_is_not_served(
    federation: Callable[..., Federation], authority: Authority
) -> None:
    authority.rotate(days=-SECOND)
    with pytest.raises(ServerError, match=r"server.pem has expired; featherfed certs rotate"):
        authority_gate(authority)


def test_a_server_of_another_authority(served: Federation, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    other.create([])
    other.enrol(["attic"])
    said = refusal(served, of(other, "attic"))
    assert "server's certificate is not from an authority in" in said


def test_a_client_certificate_of_another_authority(
    served: Federation, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    other.create([])
    other.enrol(["attic"])
    folder = other.folder / "clients" / "attic"
    shutil.copy(authority.folder / "ca.pem", folder / "ca.pem")
    with pytest.raises(ClientError, match=r"was not issued by an authority in ca\.pem"):
        load_credentials(folder)
    assert "was not issued by" in refusal(served, unchecked(folder))


def test_a_plaintext_client_at_a_tls_port(served: Federation) -> None:
    assert "the server speaks TLS, and this client does not: give --credentials" in refusal(
        served, None
    )


def test_a_tls_client_at_a_plaintext_port(
    federation: Callable[..., Federation], authority: Authority
) -> None:
    said = refusal(federation(), of(authority, "attic"))
    assert "the server does not speak TLS" in said
    assert "--insecure" in said


def test_a_server_whose_certificate_has_another_name(
    federation: Callable[..., Federation], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority_module, "SERVER_NAME", "other.example")
    authority.rotate(["server.example"])
    server = serve(federation, authority)
    assert "lacks the name featherfed.internal" in refusal(server, of(authority, "attic"))


def test_without_credentials_the_system_decides_whom_to_trust(
    federation: Callable[..., Federation], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(federation, authority, client_certificates=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    untrusting = choose_credentials("server.example:1", None, False)
    assert "this system trusts no authority of the server" in refusal(server, untrusting)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.folder / "ca.pem"))
    trusting = choose_credentials("server.example:1", None, False)
    assert "no enrolment token" in refusal(server, trusting)
    monkeypatch.setattr(authority_module, "LOOPBACK", ("server.example",))
    authority.rotate(["server.example"])
    assert "not for the name 127.0.0.1" in refusal(server, trusting)


def test_a_server_that_wants_a_certificate(served: Federation, authority: Authority) -> None:
    bare = replace(of(authority, "attic"), certificate=None, key=None)
    assert "the server wants a client certificate" in refusal(served, bare)


@pytest.mark.parametrize("whose", ["server", "client"])
def test_a_clock_that_is_behind_is_waited_for(
    whose: str,
    federation: Callable[..., Federation],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device without a battery boots in 1970; to it, everything is from the future."""
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=9000)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_days_from_now", lambda days: later)
        if whose == "server":
            patch.setattr(authority_module, "issue", not_yet(authority_module.issue, later))
            authority.rotate()
        else:
            patch.setattr(authority_module, "issue", not_yet(authority_module.issue, later))
            authority.enrol(["attic"], renew=True)
    transport = talk(serve(federation, authority), of(authority, "attic"), give_up_after=1)
    with pytest.raises(Unreachable, match=rf"{whose}.* certificate.*not valid yet.*clock says"):
        transport.status()


def not_yet(issue: Callable[..., object], later: datetime.datetime) -> Callable[..., object]:
    class Eternal:
        """An authority that outlives what it issues."""

        def __init__(self, ca: object) -> None:
            self._ca = ca

        def __getattr__(self, name: str) -> object:
            return later if name == "not_valid_after_utc" else getattr(self._ca, name)

    return lambda key, ca, *rest: issue(key, Eternal(ca), *rest)


@pytest.mark.parametrize("tls", [True, False])
def test_a_link_that_breaks_is_no_fault_of_the_credentials(tls: bool, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        cutter = threading.Thread(target=cut)
        cutter.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        proof = of(authority, "attic") if tls else None
        for _ in range(2):
            assert diagnose(address, proof) is None
        cutter.join()
    assert diagnose(address, proof) is None, "nobody listens"


def unchecked(folder: Path) -> Credentials:
    """What was in order when the client started."""
    parts = [(folder / n).read_bytes() for n in ("ca.pem", "client.pem", "client-key.pem")]
    return Credentials(folder, *parts, token=(folder / "token").read_text("utf-8").strip())


@pytest.mark.parametrize("name", ["ca.pem", "token", "client.pem", "client-key.pem"])
@pytest.mark.parametrize("how", ["missing", "unreadable", "damaged"])
def test_files_of_a_device_that_cannot_be_used(name: str, how: str, authority: Authority) -> None:
    folder = authority.folder / "clients" / "attic"
    (folder / name).unlink()
    if how == "unreadable":
        (folder / name).mkdir()
    elif how == "damaged":
        (folder / name).write_bytes(b"\xff\x00")
    with pytest.raises(ClientError) as raised:
        load_credentials(folder)
    assert str(folder) in str(raised.value)
    assert "featherfed certs client" in str(raised.value)
    assert ("cannot read" if how != "damaged" else "damaged") in str(raised.value)


def test_a_key_of_another_certificate(authority: Authority) -> None:
    folder = authority.folder / "clients"
    shutil.copy(folder / "kitchen" / "client-key.pem", folder / "attic" / "client-key.pem")
    with pytest.raises(ClientError, match="is not the key of"):
        of(authority, "attic")


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server-key.pem", "enrolled.json"])
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_files_of_the_server_that_cannot_be_used(name: str, how: str, authority: Authority) -> None:
    (authority.folder / name).unlink()
    if how == "damaged":
        (authority.folder / name).write_bytes(b'{"clients": {"a": {"token": 1}}}')
    with pytest.raises(ServerError, match=str(authority.folder)):
        authority_gate(authority)


def authority_gate(authority: Authority) -> object:
    from featherfed.server.rpc.authentication import AuthenticationInterceptor
    from featherfed.server.rpc.tls import ServerKeys

    async def refuse(context: object, refusal: object) -> None:
        raise AssertionError

    interceptor = AuthenticationInterceptor(authority.folder, True, refuse)
    return ServerKeys(authority.folder, True), interceptor


# ---- changes while the server runs ----


def test_a_running_server_knows_new_and_revoked_clients_at_once(
    served: Federation, authority: Authority
) -> None:
    authority.enrol(["garage"])
    garage = talk(served, of(authority, "garage"))
    session = garage.join(join_request("garage")).session
    authority.revoke(["garage"])
    for call in (lambda: garage.next_task(session), garage.status):
        with pytest.raises(Rejected, match="BAD_TOKEN: the access of 'garage' was revoked"):
            call()
    assert "was revoked" in refusal(served, of(authority, "garage")), "on a new connection"
    talk(served, of(authority, "attic")).status()


@pytest.mark.parametrize("certificates", [True, False])
def test_an_upload_of_a_client_that_was_revoked_meanwhile_does_not_count(
    certificates: bool, federation: Callable[..., Federation], authority: Authority
) -> None:
    security = {"credentials": str(authority.folder), "client_certificates": certificates}
    served = federation(security=security, clients={"minimum": 1})
    attic = talk(served, of(authority, "attic"))
    session = attic.join(join_request("attic")).session
    while not attic.next_task(session).HasField("train"):
        pass
    header = pb.UpdateHeader(session=session, round=1, num_examples=1, size=2)
    first, second = pb.UpdateChunk(header=header, data=b"x"), pb.UpdateChunk(data=b"x")

    def chunks(revoke_at: int) -> Iterator[pb.UpdateChunk]:
        for number, chunk in enumerate((first, second)):
            if number == revoke_at:
                authority.revoke(["attic"])
            yield chunk

    reply = attic._stub.SubmitUpdate(chunks(revoke_at=2))
    assert reply.reason != pb.BAD_TOKEN, "there is another reason against it"
    try:
        reply = attic._stub.SubmitUpdate(chunks(revoke_at=1))
    except grpc.RpcError as error:  # gRPC took the second chunk before the call began
        if "BAD_TOKEN" not in str(error.details()):
            raise
        return
    assert (reply.outcome, reply.reason) == (pb.REFUSED, pb.BAD_TOKEN)
    assert "the access of 'attic' was revoked" in reply.detail
    assert ("attic", "BAD_TOKEN") in reasons(served)


def test_a_running_server_takes_a_new_certificate(served: Federation, authority: Authority) -> None:
    attic = of(authority, "attic")
    old = talk(served, attic)
    old.status()
    before = presented(served, attic)
    authority.rotate(["10.0.0.7"])
    assert presented(served, attic) != before
    old.status()
    talk(served, attic).status()
    (authority.folder / "server.pem").write_bytes(b"half a file")
    talk(served, attic).status()


def presented(federation: Federation, credentials: Credentials) -> bytes | None:
    """Return the certificate that the server shows."""
    host, port = federation.address.split(":")
    context = credentials.ssl_context()
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=device.SERVER_NAME) as secure,
    ):
        return secure.getpeercert(binary_form=True)


def test_devices_move_to_a_new_authority_one_by_one(
    served: Federation, authority: Authority
) -> None:
    attic = of(authority, "attic")
    authority.rotate(ca_days=3650)
    assert len(authority.authorities()) == 2
    talk(served, attic).status()
    authority.enrol(["kitchen"], renew=True)
    kitchen = of(authority, "kitchen")
    talk(served, kitchen).status()
    # As if it had never heard of the old one.
    newest = authority.folder / "clients" / "kitchen" / "ca.pem"
    newest.write_text(
        newest.read_text("utf-8").split("-----END")[0] + "-----END CERTIFICATE-----\n"
    )
    talk(served, of(authority, "kitchen")).status()
    authority.rotate()
    talk(served, attic).status()
    authority.rotate(ca_days=3650)
    for one in (attic, kitchen):
        talk(served, one).status()
    assert authority.drop_old() == ["attic", "cellar", "kitchen"]
    assert "not from an authority in" in refusal(served, attic)


def test_a_server_that_no_longer_trusts_a_client_hangs_up(
    served: Federation, authority: Authority
) -> None:
    authority.rotate(ca_days=3650)
    shutil.copy(authority.folder / "ca.pem", authority.folder / "clients" / "attic" / "ca.pem")
    attic = of(authority, "attic")
    authority.drop_old()
    assert "hangs up when it sees this device's certificate" in refusal(served, attic)


def test_while_it_cannot_be_read_who_is_enrolled_everybody_waits(
    served: Federation, authority: Authority
) -> None:
    file = authority.folder / "enrolled.json"
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    with pytest.raises(Unreachable, match="cannot read who is enrolled"):
        talk(served, of(authority, "attic"), give_up_after=0).status()
    file.write_bytes(content)
    talk(served, of(authority, "attic")).status()


# ---- the folder ----


def test_private_files_are_private_and_nothing_is_overwritten(authority: Authority) -> None:
    for path in authority.folder.rglob("*"):
        private = path.is_dir() or path.name in ("token", "enrolled.json") or "key" in path.name
        if private and path.name != "clients":
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    before = {p: p.read_bytes() for p in authority.folder.rglob("*") if p.is_file()}
    with pytest.raises(ServerError, match="nothing is overwritten"):
        authority.create([])
    with pytest.raises(ServerError, match="'attic' is enrolled already; --renew"):
        authority.enrol(["new", "attic"])
    with pytest.raises(ServerError, match="'nobody' is not enrolled"):
        authority.revoke(["attic", "nobody"])
    with pytest.raises(ServerError, match="a client name has"):
        authority.enrol(["../x"])
    with pytest.raises(ServerError, match="neither a host's name"):
        authority.rotate(["a..b"])
    assert before == {p: p.read_bytes() for p in authority.folder.rglob("*") if p.is_file()}


def test_the_server_keeps_only_hashes_of_tokens(authority: Authority) -> None:
    text = (authority.folder / "enrolled.json").read_text("utf-8")
    for name in NAMES:
        token = of(authority, name).token or ""
        secret = token.rpartition(".")[2]
        assert len(secret) >= 43, "256 bits"
        assert name in text
        assert secret not in text


def test_the_certs_commands(tmp_path: Path) -> None:
    def certs(*arguments: str) -> str:
        done = run("certs", *arguments, cwd=tmp_path)
        return done.stdout if done.returncode == 0 else done.stderr

    assert "featherfed certs init" in certs("client", "certs", "attic")
    assert "next: featherfed certs client certs NAME" in certs(
        "init", "certs", "--host", "server.local", "--host", "192.168.1.10"
    )
    assert "nothing is overwritten" in certs("init", "certs")
    assert "certs/clients/attic: copy it" in certs("client", "certs", "attic", "kitchen")
    assert "--renew" in certs("client", "certs", "attic")
    assert "revoked: attic" in certs("revoke", "certs", "attic")
    assert "new certificate" in certs("rotate", "certs", "--ca")
    listed = certs("list", "certs").splitlines()
    assert [line.split()[0] for line in listed[-3:]] == ["server", "attic", "kitchen"]
    assert listed[-2].endswith("revoked")
    assert listed[-1].endswith("of an old authority")
    assert "kitchen" in certs("rotate", "certs", "--drop-old")


# ---- TLS is the default where others can listen ----


def test_a_server_that_others_reach_needs_credentials(authority: Authority) -> None:
    folder = authority.folder
    open_ = Settings.model_validate({"server": {"host": "0.0.0.0"}})
    with pytest.raises(ServerError, match="featherfed certs init certs"):
        serve_settings(open_, None, None, None, False)
    with pytest.raises(ServerError, match="featherfed certs init certs"):
        serve_settings(Settings(), "0.0.0.0", None, None, False)
    with pytest.raises(ServerError, match="contradict"):
        serve_settings(open_, None, None, folder, True)
    assert serve_settings(open_, None, None, None, True).security.insecure
    assert serve_settings(open_, None, None, folder, False).security.credentials == str(folder)
    with pytest.raises(ServerError, match="featherfed certs init"):
        serve_settings(open_, None, None, Path("nowhere"), False)
    assert serve_settings(Settings(), None, None, None, False) == Settings()
    asked = {"server": {"host": "0.0.0.0"}, "security": {"insecure": True}}
    insecure = Settings.model_validate(asked)
    assert serve_settings(insecure, None, 1, None, False).security.insecure
    assert not serve_settings(insecure, None, None, folder, False).security.insecure
    with pytest.raises(ValueError, match="contradict"):
        SecuritySettings(credentials="certs", insecure=True)


def test_a_client_speaks_tls_with_other_machines(authority: Authority) -> None:
    for here in ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"):
        assert choose_credentials(here, None, False) is None
    for there in ("10.0.0.7:1", "server.local:1", "[fd00::5]:1", "localhost.example:1"):
        assert choose_credentials(there, None, False) is not None
        assert choose_credentials(there, None, True) is None
    folder = authority.folder / "clients" / "attic"
    assert choose_credentials("127.0.0.1:1", folder, False) == load_credentials(folder)
    with pytest.raises(ClientError, match="--insecure would send the token unencrypted"):
        choose_credentials("127.0.0.1:1", folder, True)


def test_a_client_has_the_name_of_its_credentials(authority: Authority) -> None:
    attic = of(authority, "attic")
    assert device_name(None, attic) == device_name("attic", attic) == "attic"
    assert device_name("garage", None) == "garage"
    with pytest.raises(ClientError, match="belong to 'attic', not 'kitchen'"):
        device_name("kitchen", attic)


# ---- secrets ----


def secrets_of(authority: Authority) -> list[str]:
    folders = [authority.folder / "clients" / name for name in NAMES]
    tokens = [(f / "token").read_text("utf-8").strip().rpartition(".")[2] for f in folders]
    files = [f / "client-key.pem" for f in folders]
    files += [authority.folder / "server-key.pem", authority.folder / "ca-key.pem"]
    return tokens + [file.read_text("utf-8").splitlines()[1] for file in files]


def test_secrets_stay_out_of_logs_errors_and_the_database(
    served: Federation, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    credentials = of(authority, "attic")
    said = [repr(credentials), str(credentials)]
    talk(served, credentials).status()
    mixed = replace(credentials, token=of(authority, "kitchen").token)
    said.append(refusal(served, mixed))
    said.append(refusal(served, replace(credentials, token=f"{credentials.token}x")))
    authority.revoke(["attic"])
    said.append(refusal(served, credentials))
    said.append(caplog.text)
    said.extend(str(row) for row in served.store.refusals.all())
    stored = b"".join(path.read_bytes() for path in served.directory.glob("run.db*"))
    for secret in secrets_of(authority):
        assert not any(secret in text for text in said)
        assert secret.encode() not in stored


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


RUN = """
name = "secret"
output = "out"
rounds = 2
server = { port = 0, linger = 20 }
training = { learning_rate = 0.1, epochs = 1 }
clients = { minimum = 2, quorum = 1.0, deadline = 120 }
evaluation = { dataset = "digits" }
"""


@pytest.mark.slow
def test_the_commands_take_part_with_credentials(processes: Processes) -> None:
    folder = processes.directory
    for arguments in (["init", "certs"], ["client", "certs", *NAMES]):
        assert run("certs", *arguments, cwd=folder).returncode == 0
    authority = Authority(folder / "certs")
    train, _ = load_train_test("digits")
    train.take(range(200)).save(folder / "data.npz")
    (folder / "run.toml").write_text(RUN, "utf-8")
    processes.start("server", "serve", "run.toml", "--credentials", "certs", "-v")
    file = folder / "out" / "server.address"
    wait_until(lambda: file.is_file() or processes.running["server"].poll() is not None)
    address = file.read_text("utf-8")
    common = ["--data", "data.npz", "--runtime", "litert", "--threads", "1", "-v"]
    for name in ("attic", "kitchen"):
        processes.start(
            name, "join", address, *common, "--state-dir", f"state-{name}",
            "--credentials", f"certs/clients/{name}",
        )  # fmt: skip
    processes.start("stranger", "join", address, *common, "--state-dir", "s", "--name", "stranger")
    processes.start(
        "follower", "follow", address, "--model-dir", "models", "--once",
        "--credentials", "certs/clients/cellar",
    )  # fmt: skip
    assert processes.wait("stranger") == 1
    assert "the server speaks TLS" in processes.log("stranger")
    assert processes.wait("follower") == 0, processes.log("follower")
    for name in ("attic", "kitchen", "server"):
        assert processes.wait(name) == 0, processes.log(name)
    assert (folder / "models" / "model_int8.tflite").is_file()
    written = "".join(processes.log(name) for name in processes.running)
    written += "".join(
        path.read_bytes().decode("latin-1")
        for path in [*(folder / "out").rglob("*"), *folder.glob("state-*/*")]
        if path.is_file()
    )
    for secret in secrets_of(authority):
        assert secret not in written
