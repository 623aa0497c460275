"""A client's part in the int8 file of a run whose server has no examples: ranges, and scores.

It gets a file of the final model, measures the ranges of its values on training examples, and tells
them. From those of all clients the server makes the int8 file, which it evaluates on held-out ones.
"""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import closing

import numpy as np

from featherfed.compression.errors import WireError
from featherfed.compression.exchange.manifest import Manifest
from featherfed.compression.stages.zstd import Zstd
from featherfed.edge_client.answers import check_file, max_model_file
from featherfed.edge_client.errors import (
    ClientError,
    Rejected,
    SessionLost,
    StaleTask,
    TooLarge,
    Unreachable,
)
from featherfed.edge_client.evaluation import finite_message
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.model_process import ModelProcess
from featherfed.edge_client.trainer import HasExamples, Trainer
from featherfed.edge_client.transport import Transport
from featherfed.proto import federation_pb2 as pb

log = logging.getLogger(__name__)

EXAMPLES = 200
"""Most training examples that ranges are measured on."""
POLLS = 120
"""How often a client asks for a file that is still to be made."""
_WAIT_SECONDS = 20
_SHORT_POLL = 1.0  # seconds; after a shorter poll that brought nothing the client pauses
_ROWS = 32  # examples in one message to the file's process


def int8_helper(
    transport: Transport, session: int, manifest: Manifest, trainer: Trainer
) -> Int8Helper | None:
    """Return what helps to make the int8 file; None if the trainer does not tell its examples."""
    if not isinstance(trainer, HasExamples):
        return None
    return Int8Helper(transport, session, max_model_file(manifest), trainer)


class Int8Helper:
    """Measures and evaluates files of the final model on this client's examples."""

    def __init__(
        self, transport: Transport, session: int, limit: int, trainer: HasExamples
    ) -> None:
        """`limit`: most bytes of a file."""
        self._transport = transport
        self._session = session
        self._limit = limit
        self._trainer = trainer
        self._measured = b""
        """The file to measure, which the int8 file is compressed with."""

    def help(self, finished: pb.Finished) -> None:
        """Measure ranges if asked, then evaluate the int8 file; a failure is only logged."""
        try:
            if finished.measure_ranges:
                self._measure(finished.version)
            self._evaluate(finished.version)
        except (
            ClientError, Rejected, SessionLost, StaleTask, TooLarge, Unreachable,
        ) as error:  # fmt: skip
            log.warning("this client has no part in the int8 file: %s", error)

    def _measure(self, version: int) -> None:
        file, content = self._fetch(pb.TO_MEASURE)
        report = pb.RangesReport(session=self._session, version=version, digest=file.digest)
        try:
            self._add_ranges(report, file, content)
        except ClientError as error:  # told all the same, or the server would wait
            log.warning("the model's values cannot be measured: %s", error)
        self._measured = content
        self._transport.report_ranges(report)

    def _add_ranges(self, report: pb.RangesReport, file: pb.ModelFile, content: bytes) -> None:
        examples = self._trainer.examples
        total = len(examples.training)
        chosen = np.linspace(0, total - 1, min(EXAMPLES, total)).astype(np.int64)
        process = ModelProcess(content, examples.task, file.inputs, file.outputs, measured=True)
        with closing(process):
            for start in range(0, len(chosen), _ROWS):
                process.answer(examples.batch(chosen[start : start + _ROWS])[0])
            ranges = process.ranges()
        if not np.isfinite(ranges).all():
            log.warning("some values of the model are not finite on these data")
            return
        report.lows.extend(ranges[:, 0].tolist())
        report.highs.extend(ranges[:, 1].tolist())
        report.num_examples = len(chosen)
        log.info("measured the ranges of %d tensors on %d examples", len(ranges), len(chosen))

    def _evaluate(self, version: int) -> None:
        file, content = self._fetch(pb.INT8)
        report = pb.EvaluationReport(session=self._session, version=version, digest=file.digest)
        try:
            found = self._sums(self._trainer.examples, file, content)
            if found is not None:
                report.evaluation.CopyFrom(found)
        except ClientError as error:
            log.warning("the int8 file cannot be evaluated: %s", error)
        self._transport.report_evaluation(report)

    def _sums(self, examples: Examples, file: pb.ModelFile, content: bytes) -> pb.Evaluation | None:
        with closing(ModelProcess(content, examples.task, file.inputs, file.outputs)) as process:
            sums = examples.held_out_sums(process.answer, _ROWS)
        return None if sums is None else finite_message(sums)

    def _fetch(self, kind: pb.ModelFileKind) -> tuple[pb.ModelFile, bytes]:
        """Return a file of the final model, once it is made."""
        have = hashlib.sha256(self._measured).digest() if self._measured else b""
        request = pb.FetchModelFileRequest(
            session=self._session, kind=kind, wait_seconds=_WAIT_SECONDS, have_digest=have
        )
        for _ in range(POLLS):
            began = time.monotonic()
            found = self._transport.fetch_model_file(request, self._limit)
            if found is not None:
                return found[0], self._unpacked(*found)
            if time.monotonic() - began < _SHORT_POLL:
                time.sleep(_SHORT_POLL)
        raise ClientError("the server has not made it in time")

    def _unpacked(self, file: pb.ModelFile, data: bytes) -> bytes:
        """Return a file's content; raise ClientError if it is another than announced."""
        check_file(file, self._limit)
        base = self._measured if file.against_measured else b""
        try:
            content = Zstd().decompress(data, file.size, base)
        except WireError as error:
            raise ClientError(f"the server's model file is damaged: {error}") from error
        if hashlib.sha256(content).digest() != file.digest:
            raise ClientError("the server sent another model file than it announced; refused")
        return content
