"""The final model as an int8 file, where the server has no examples: clients measure and evaluate.

Each client that takes part gets a file with float values, and tells the ranges that they have on
its examples. Once all present ones have, the merged ranges give the int8 file, which they evaluate.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from featherfed.compression.arrays import Array
from featherfed.compression.stages.zstd import Zstd
from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.data_check import most_held_out
from featherfed.server.coordinator.evaluation import read_sums
from featherfed.server.coordinator.final_evaluation import FinalEvaluation
from featherfed.server.coordinator.members import Members
from featherfed.server.coordinator.presence import Presence
from featherfed.server.coordinator.state import LiveRun
from featherfed.server.errors import Refused
from featherfed.server.observability import events
from featherfed.server.rounds.held_out import HeldOutScores
from featherfed.server.rounds.ranges import Ranges, merge_ranges, read_ranges, stored_ranges
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.model_files import StoredRanges
from featherfed.server.storage.records import Scores
from featherfed.server.storage.store import Store
from featherfed.tasks.errors import TaskError

_LEVEL = 19  # compressed once, sent to every client
_PATIENCE = 0.5
"""The share of `linger` for which the int8 file waits for ranges, and then for its evaluation."""


@dataclass(frozen=True)
class ModelFile:
    """A .tflite with its number of float tensors that are measured.

    `inputs` are the places of the task's inputs among the file's, `outputs` those of its targets.
    """

    content: bytes
    inputs: Sequence[int]
    outputs: Sequence[int] = (0,)
    num_measured: int = 0

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).digest()


class Quantizer(Protocol):
    """Makes the files of a model; an entry point builds it, since it needs TensorFlow."""

    @property
    def needs_ranges(self) -> bool:
        """Whether int8 files need ranges, which quantization-aware training learns."""

    def file_to_measure(self, weights: Sequence[Array]) -> ModelFile:
        """Return the file whose values are measured; raise Refused if there is none."""

    def int8_file(self, weights: Sequence[Array], ranges: Ranges | None) -> ModelFile:
        """Return the int8 file of the model; raise Refused if there is none."""


class OfferedFile(NamedTuple):
    """What a client downloads, and how it is described."""

    description: pb.ModelFile
    data: bytes


class Measured(NamedTuple):
    """The ranges of all clients together, None if nobody has told any; and of how many examples."""

    ranges: Ranges | None
    num_examples: int


class FinalModelFiles:
    """Offers files of the final model to clients, and takes what they measured of them, once each.

    `offer` takes long and is to be called in a thread of its own.
    """

    def __init__(
        self,
        run: LiveRun,
        members: Members,
        presence: Presence,
        held_out: HeldOutScores,
        final_evaluation: FinalEvaluation,
        quantizer: Quantizer | None,
        newest_weights: Callable[[], Sequence[Array]],
    ) -> None:
        """`quantizer`: None where clients are not asked."""
        self._run = run
        self._members = members
        self._presence = presence
        self._held_out = held_out
        self._final_evaluation = final_evaluation
        self._quantizer = quantizer if final_evaluation.wanted else None
        self._newest_weights = newest_weights
        self._making = threading.Lock()
        self._made: dict[int, ModelFile] = {}
        self._offers: dict[tuple[int, bool], OfferedFile] = {}
        self._failed: Refused | None = None
        self._taking_part: set[str] = set()
        self._asked_at = 0.0
        self._version = -1
        """The version that the files are of, which was asked for at `_asked_at`."""
        self._closed = -1
        """The version whose ranges are merged: later ones do not count."""

    def announce(self, end: pb.Finished) -> pb.Finished:
        """Say in a client's last task what it is asked for."""
        if self._quantizer is not None:
            end.measure_ranges = self._quantizer.needs_ranges
            end.evaluate_int8 = True
        return end

    def take_part(self, client: str) -> None:
        """Wait from now on for what a client will tell of the int8 file."""
        if self._quantizer is not None:
            with self._run.lock:
                self._taking_part.add(client)

    def offer(self, client: str, request: pb.FetchModelFileRequest) -> OfferedFile | None:
        """Return a file of the final model, None if it is still to be made.

        Raises Refused if there is none in this run, or it cannot be made.
        """
        quantizer = self._quantizer
        if quantizer is None or request.kind not in (pb.TO_MEASURE, pb.INT8):
            raise Refused(pb.MISSING_CAPABILITY, "this run gives clients no such file of its model")
        if request.kind == pb.TO_MEASURE and not quantizer.needs_ranges:
            raise Refused(pb.MISSING_CAPABILITY, "this run's model has learned its ranges")
        self.take_part(client)
        with self._making:
            self._check_version()
            if self._failed is not None:
                raise self._failed
            if request.kind == pb.INT8 and not self._is_settled():
                return None
            return self._offered(quantizer, request)

    def _check_version(self) -> None:
        """Forget the files of another version: the run has gone on with more rounds."""
        with self._run.lock:
            state = self._run.state
            if state.phase is not Phase.FINISHED:
                raise Refused(pb.UNKNOWN_VERSION, "the run has not finished; ask for the next task")
            if self._version != state.round:
                self._made.clear()
                self._offers.clear()
                self._failed = None
                self._version, self._asked_at = state.round, self._run.clock()

    def _is_settled(self) -> bool:
        """Whether no more ranges are waited for."""
        run = self._run
        with run.lock:
            late = run.clock() - self._asked_at >= _PATIENCE * run.settings.server.linger
            if late or not self._waited_for(self._presence.present()):
                self.close()
            return self._is_closed

    @property
    def _is_closed(self) -> bool:
        return self._closed == self._run.state.round

    def close(self) -> None:
        """Merge the ranges that are there: later ones do not count."""
        with self._run.lock:
            if self._run.phase is Phase.FINISHED:
                self._closed = self._run.state.round

    @property
    def is_waiting(self) -> bool:
        """Whether the final version's ranges are still to come, which the int8 file needs."""
        with self._run.lock:
            quantizer, finished = self._quantizer, self._run.phase is Phase.FINISHED
            wanted = quantizer is not None and quantizer.needs_ranges
            return wanted and finished and not self._is_closed

    def _waited_for(self, present: frozenset[str]) -> frozenset[str]:
        """Return the present clients whose ranges are still to come."""
        assert self._quantizer is not None, "clients are asked"
        told = self._run.store.model_files.ranges(self._run.state.round)
        coming = (
            present & self._taking_part - told.keys() if self._quantizer.needs_ranges else set()
        )
        return frozenset(coming) | self._final_evaluation.missing(present)

    def _offered(self, quantizer: Quantizer, request: pb.FetchModelFileRequest) -> OfferedFile:
        file = self._file(quantizer, request.kind)
        base = self._made.get(pb.TO_MEASURE)
        known = request.kind == pb.INT8 and base is not None and request.have_digest == base.digest
        key = int(request.kind), known
        if key not in self._offers:
            dictionary = base.content if known and base is not None else b""
            data = Zstd(_LEVEL).compress(file.content, dictionary)
            description = pb.ModelFile(
                digest=file.digest, size=len(file.content), compressed=len(data),
                inputs=file.inputs, outputs=file.outputs, against_measured=known,
            )  # fmt: skip
            self._offers[key] = OfferedFile(description, data)
        return self._offers[key]

    def _file(self, quantizer: Quantizer, kind: int) -> ModelFile:
        """Return a file of the final model, made once; what went wrong is remembered."""
        if kind not in self._made:
            weights = self._newest_weights()
            try:
                if kind == pb.TO_MEASURE:
                    self._made[kind] = quantizer.file_to_measure(weights)
                else:
                    self._made[kind] = quantizer.int8_file(weights, self.measured().ranges)
            except Refused as refusal:
                self._failed = refusal
                events.int8_failed(self._run.plan.run, str(refusal))
                raise
        return self._made[kind]

    def report_ranges(self, client: str, report: pb.RangesReport) -> pb.RangesReceipt:
        """Store a client's ranges, which count once; raise Refused if they cannot be."""
        run = self._run
        with run.change():
            file = self._made.get(pb.TO_MEASURE)
            self._check_report(report.version, report.digest, file)
            if self._is_closed:
                raise Refused(pb.LATE, "the ranges have been merged; they came too late")
            assert file is not None, "the digest is that of a file"
            try:
                ranges = read_ranges(report, file.num_measured)
            except TaskError as error:
                raise Refused(pb.MALFORMED, f"ranges: {error}") from error
            found = StoredRanges(report.digest, ranges, report.num_examples)
            run.store.model_files.add_ranges(report.version, client, found)
        return pb.RangesReceipt()

    def report_sums(self, client: str, report: pb.EvaluationReport) -> pb.EvaluationReceipt:
        """Store a client's sums of the int8 file, which count once; raise Refused."""
        run = self._run
        with run.change():
            self._check_report(report.version, report.digest, self._made.get(pb.INT8))
            most = most_held_out(self._members.record(client))
            sums = read_sums(self._held_out, report.evaluation, most)
            run.store.model_files.add_sums(report.version, client, report.digest, sums)
        return pb.EvaluationReceipt()

    def _check_report(self, version: int, digest: bytes, file: ModelFile | None) -> None:
        state = self._run.state
        if state.phase is not Phase.FINISHED or version != state.round:
            raise Refused(pb.UNKNOWN_VERSION, f"version {version} is not this run's final one")
        if file is None or digest != file.digest:
            raise Refused(pb.UNKNOWN_VERSION, "nobody was given that file; fetch it anew")

    def missing(self, present: frozenset[str]) -> frozenset[str]:
        """Return those of the present clients that will still tell something of the int8 file."""
        with self._run.lock:
            if self._quantizer is None or self._failed is not None:
                return frozenset()
            if self._run.phase is not Phase.FINISHED:
                return frozenset()
            file = self._made.get(pb.INT8)
            known = self._run.store.model_files.sums(self._run.state.round)
            told = {} if file is None else known.get(file.digest, {})
            return present & frozenset(self._taking_part) - told.keys()

    def measured(self) -> Measured:
        """Return the ranges of the final version that clients have told, merged."""
        version = self._run.store.versions.newest().version
        return merged(self._run.store.model_files.ranges(version))

    def scores(self, content: bytes) -> tuple[Scores, int]:
        """Return what `int8_scores` does of the newest version's file."""
        store = self._run.store
        return int8_scores(store, self._held_out, store.versions.newest().version, content)


def int8_scores(
    store: Store, held_out: HeldOutScores, version: int, content: bytes
) -> tuple[Scores, int]:
    """Return the scores that clients found a version's int8 file of this content to have.

    And the number of their examples; nothing and 0 if nobody evaluated it.
    """
    told = store.model_files.sums(version).get(hashlib.sha256(content).digest(), {})
    reports = [sums for sums in told.values() if sums]
    return held_out.scores(reports), held_out.count(reports)


def merged(reports: Mapping[str, StoredRanges]) -> Measured:
    """Return the ranges of all reports on one file: the one that most clients measured."""
    told = [report for report in reports.values() if report.ranges]
    if not told:
        return Measured(None, 0)
    ((digest, _),) = Counter(report.digest for report in told).most_common(1)
    same = [report for report in told if report.digest == digest]
    ranges = merge_ranges([stored_ranges(report.ranges) for report in same])
    return Measured(ranges, sum(report.num_examples for report in same))
