"""A run file (TOML) as frozen, validated settings; every error names the key and the remedy."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    computed_field,
    model_validator,
)

from featherfed.compression.registry import parse_codec
from featherfed.proto.plan_terms import DEFAULT_LOSS, Loss, Method, Optimizer
from featherfed.server.errors import ServerError
from featherfed.server.rounds.sparsity import DENSE, SparsitySchedule
from featherfed.server.rounds.total import TotalRounds
from featherfed.server.rounds.transitions import Policy
from featherfed.server.rounds.uplink import check_uplink
from featherfed.server.settings.checks import (
    check_evaluation,
    check_privacy,
    check_privacy_of_sums,
    check_rule,
    check_task,
)
from featherfed.server.settings.rule import Rule
from featherfed.server.settings.section import Section
from featherfed.server.settings.task import TaskSettings
from featherfed.tasks.metrics import is_better
from featherfed.tasks.task import Task


def _codec_text(text: str) -> str:
    return str(parse_codec(text))


def _check_clip(times: float) -> float:
    if times == 0 or 1 <= times < math.inf:
        return times
    raise ValueError("must be 0, for no clipping, or at least 1, since less would clip everybody")


def _check_noise(multiplier: float) -> float:
    if multiplier == 0 or 1e-6 <= multiplier <= 1e6:
        return multiplier
    raise ValueError("must be 0, for no noise, or from 1e-6, which protects nobody, to 1e6")


def _check_tracker(text: str) -> str:
    kind, colon, target = text.partition(":")
    if kind not in TRACKERS or (colon and not target):
        raise ValueError(f"must be {', '.join(TRACKERS)}, alone or as {TRACKERS[0]}:runs/tb")
    return text


CodecText = Annotated[str, AfterValidator(_codec_text)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Epochs = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0)]
_ADDRESS = r"^.+:\d{1,5}$"
Address = Annotated[str, Field(pattern=_ADDRESS)]
"""HOST:PORT."""
AnySection = TypeVar("AnySection", bound=Section)
TRACKERS = ("tensorboard", "mlflow", "wandb", "otel")
"""The kinds of trackers."""
DEFAULT_HOLDOUT = 0.1
"""The share of its examples that a client evaluates on, where the server has no data set."""


class ModelSettings(Section):
    """The model to train."""

    name: str = "cnn"
    """A built-in architecture (cnn, mlp, mobile, gru), a function (module:function), or a path to a
    Keras 2 or 3 model: .keras, .h5, a SavedModel folder or a configuration (.json)."""
    weights: str = ""
    """What version 0 is: a .keras or .h5 file, a SavedModel folder or a run's output folder, whose
    newest version it is, or FOLDER@VERSION or FOLDER@DIGEST. "seed": drawn from the run's seed. By
    default the weights that came with the model, or the seed's if it has none."""


class TrainingSettings(Section):
    """How a client trains in a round."""

    epochs: Epochs = 5
    """Passes over the client's data in one round."""
    batch_size: BatchSize = 32
    """Examples of one step of training."""
    learning_rate: LearningRate = 0.01
    """Of the clients' optimizer."""
    optimizer: Optimizer = Optimizer.SGD
    """With Keras' own settings; momentum is 0.9."""
    loss: Loss | None = None
    """A Keras loss that fits the task's target; None: the usual one for it."""


class OptimizationSettings(Section):
    """How TFMOT optimises the model while it is trained."""

    method: Method = Method.NONE
    """Pruning, clustering, quantization-aware training, or pruning and that; none by default."""
    final_sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of the prunable weights that are zero at the end."""
    begin_round: Annotated[int, Field(ge=1)] = 2
    """The first round with a mask."""
    end_round: Annotated[int, Field(ge=1)] | None = None
    """The round that reaches the final sparsity; by default two thirds of all rounds."""
    num_clusters: Annotated[int, Field(ge=2, le=256)] = 16
    """Distinct values per kernel, for the method `cluster`."""


class CompressionSettings(Section):
    """The codec of each direction."""

    uplink: Annotated[str, AfterValidator(check_uplink)] = "balanced"
    """A preset, a budget of the whole cohort such as "4kB/round", or codec text."""
    fallback: CodecText = "quantize(8) | zstd"
    """For clients that do not know the uplink's codec."""
    downlink: CodecText = "deadzone(0.15) | zstd(1)"
    """Codec of the mean update, for clients to which the updates themselves are not forwarded."""
    broadcast: Literal["auto", "aggregate"] = "auto"
    """`auto`: forward the clients' updates where that is smallest; `aggregate`: send only their
    mean."""


class ClientSettings(Section):
    """Who takes part; times in seconds."""

    minimum: Annotated[int, Field(ge=1)] = 2
    """Clients that must be present for the first round to open."""
    fraction: Fraction = 1.0
    """Share of the present clients that is sampled into a round's cohort."""
    quorum: Fraction = 0.5
    """Share of the cohort that must have reported for the deadline to close a round."""
    deadline: Annotated[float, Field(gt=0)] = 600.0
    """Time from a round's opening until a quorum closes it."""
    patience: Annotated[float, Field(ge=0)] = 30.0
    """How long a round waits for known clients that are away."""
    over_selection: Annotated[float, Field(ge=1)] = 1.0
    """Sample this many times the wanted clients; a round closes once the wanted number reported."""
    heartbeat: Annotated[int, Field(ge=0)] = 0
    """Seconds between heartbeats of a training client; after three without one it is lost, and the
    round does not wait for it. 0: no heartbeats, the deadline alone decides."""


class AggregationSettings(Section):
    """How a round's updates become the next model."""

    rule: Literal["mean", "trimmed_mean", "median", "multi_krum"] = "mean"
    """The mean weighted by examples, or a robust rule, which needs dense codecs."""
    byzantine: Annotated[int, Field(ge=1)] = 1
    """How many hostile clients a robust rule must withstand."""
    clip: Annotated[float, AfterValidator(_check_clip)] = 10.0
    """Clip an update's norm to this many times the quantile of the round's norms; 0: never. Of one
    or two updates, the smaller one and the norm of the model take the quantile's place."""
    quantile: Fraction = 0.5
    """Which quantile of the round's norms; 0.5 is the median."""
    steps: Literal["scheduled", "whole"] = "scheduled"
    """How far the server follows a round's mean: "whole", as plain FedAvg does, or "scheduled",
    farther in the middle of a run and less far at its end (rounds/steps.py). Only of the rule mean,
    without privacy, and in cohorts of three or more."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Cap on the number of examples that an update is weighted by; None: no cap."""


class PrivacySettings(Section):
    """Client-level differential privacy; off unless there is noise."""

    noise_multiplier: Annotated[
        float, Field(ge=0, allow_inf_nan=False), AfterValidator(_check_noise)
    ] = 0.0
    """Standard deviation of the noise in units of the clipping norm."""
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """L2 norm that updates are clipped to, in the first round if it adapts."""
    adaptive: bool = True
    """Let the clipping norm follow a quantile of the updates' norms (Andrew et al. 2021)."""
    quantile: Fraction = 0.5
    """The quantile that an adaptive clipping norm follows."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta at which epsilon is reported."""


class SecuritySettings(Section):
    """Who may talk to the server; see SECURITY.md."""

    credentials: str | None = None
    """The folder that `featherfed certs` makes: TLS, clients' certificates and tokens."""
    client_certificates: bool = True
    """Require a certificate of every client, besides its token."""
    insecure: bool = False
    """Allow an address that other machines can reach without TLS."""

    @model_validator(mode="after")
    def _not_insecure_with_credentials(self) -> SecuritySettings:
        if self.insecure and self.credentials is not None:
            raise ValueError("credentials and insecure = true contradict each other; drop one")
        return self


class LimitSettings(Section):
    """Limits for one client and for all clients together."""

    clients: Annotated[int, Field(ge=1)] = 10_000
    """How many names may join the run."""
    devices: Annotated[int, Field(ge=1)] = 1000
    """How many inference-only devices have their bytes counted by name; others are one row."""
    streams: Annotated[int, Field(ge=1)] = 20_000
    """Calls open at the same time, long polls included. One address has room for two thirds of
    them, a name that credentials prove for 64."""
    requests_per_second: Annotated[float, Field(gt=0)] = 20.0
    """Calls of one client, in bursts of up to five seconds' worth. From one address come a hundred
    times as many at most, and without a session ten times, twenty times from all together."""
    queued_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """Bytes of all updates that are being received at the same time."""
    stall_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a peer may neither send what it uploads nor read what it downloads."""


class TargetScore(Section):
    """How good a model must be for the run to end early."""

    metric: str
    """One of the task's metrics, or loss."""
    value: Annotated[float, Field(allow_inf_nan=False)]
    """The score that suffices; whether more or less is better follows from the metric."""


class EvaluationSettings(Section):
    """How models are evaluated: on a data set that the server has, or by the clients."""

    dataset: str | None = None
    """The server's test set: digits, fashion-mnist or a folder; with a [task] also what clients
    give as --data. None: the server has no data."""
    holdout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of its examples that each client keeps out of training and evaluates models on; by
    default 0.1 without a data set, and 0 with one."""
    target: TargetScore | None = None
    """End the run once a version is as good as this; None: after all rounds."""
    int8: bool = True
    """Without a data set, let clients measure the ranges of the int8 file at the run's end, and
    evaluate it: each of them downloads the model once more, as about a byte a parameter."""
    clients: Annotated[int, Field(ge=0)] = 10
    """In each round, evaluate the models of this many clients too, drawn by the run's secret."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def every_client(self) -> bool:
        """Whether clients' models are evaluated: so it stands in older runs' fingerprints."""
        return self.clients > 0

    @property
    def by_clients_int8(self) -> bool:
        """Whether clients measure and evaluate the int8 file at the run's end."""
        return self.int8 and self.dataset is None and self.share_held_out > 0

    @property
    def share_held_out(self) -> float:
        """The share of its examples that each client evaluates on; 0: clients do not."""
        if self.holdout is None:
            return DEFAULT_HOLDOUT if self.dataset is None else 0.0
        return self.holdout

    @property
    def evaluated_by(self) -> str | None:
        """Who says how good a version is: the server, the clients, or None for nobody."""
        if self.dataset is not None:
            return "server"
        return "clients" if self.share_held_out else None


class ServerSettings(Section):
    """Where the server listens."""

    host: str = "127.0.0.1"
    """The address that it listens on; 0.0.0.0: all of this machine's."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """0 takes a free port; the address is written to DIR/server.address."""
    linger: Annotated[float, Field(ge=0)] = 60.0
    """Seconds to wait, at the most, for clients to fetch the final model after the last round."""
    announce: bool | None = None
    """Announce the server on the local network; by default if other machines can reach it."""
    stay: bool = False
    """Serve the run's releases after its end, until a signal stops the server."""
    metrics: Address | None = None
    """HOST:PORT where Prometheus finds /metrics."""
    trackers: list[Annotated[str, AfterValidator(_check_tracker)]] = Field(default_factory=list)
    """What else is told of each round: tensorboard:FOLDER, mlflow:URI, wandb:PROJECT or
    otel:http://HOST:PORT; each also alone."""
    page: Address | None = None
    """HOST:PORT of the live page for browsers."""
    page_hosts: tuple[str, ...] = ()
    """Further names under which the live page answers, such as that of a proxy before it."""
    postgres: str | None = None
    """Keep the run in this PostgreSQL database instead of in DIR/run.db: a URL such as
    postgresql://USER@HOST/NAME, or a connection string, without the password."""
    postgres_schema: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "featherfed"
    """The schema in that database, one for each run."""
    advertise: Address | None = None
    """HOST:PORT at which the other servers of a run in PostgreSQL reach this one; by default where
    it listens, by this machine's name if that is 0.0.0.0."""


class Settings(Section):
    """A whole run file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    """Of the run, in logs, metrics and reports."""
    output: str = "runs/run"
    """Directory of the run's database, metrics, models and report."""
    rounds: Annotated[int, Field(ge=1)] = 7
    """How many rounds there are, unless the target is reached before."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of all that server and clients draw alike: version 0, the order of examples, sketches."""
    notes: dict[str, str | int | float] = Field(default_factory=dict)
    """Anything worth repeating in metrics.json, e.g. how the data were split."""
    server: ServerSettings = ServerSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    optimization: OptimizationSettings = OptimizationSettings()
    compression: CompressionSettings = CompressionSettings()
    clients: ClientSettings = ClientSettings()
    aggregation: AggregationSettings = AggregationSettings()
    privacy: PrivacySettings = PrivacySettings()
    security: SecuritySettings = SecuritySettings()
    limits: LimitSettings = LimitSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    task: TaskSettings | None = None
    """What is learned; None: to tell the pictures of the evaluation data set apart."""

    @model_validator(mode="after")
    def _sparsity_rounds_fit(self) -> Settings:
        if self.prunes and not self.optimization.begin_round <= self._end_round <= self.rounds:
            raise ValueError(
                f"optimization.begin_round ({self.optimization.begin_round}) <= end_round "
                f"({self._end_round}) <= rounds ({self.rounds}) must hold; "
                "change one of them or use more rounds"
            )
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> Settings:
        if self.task is not None:
            try:
                task = self.task.made(self.training.loss)
            except ValueError as error:  # all but the loss was checked before
                raise ValueError(f"training.loss: {error}") from error
            if problems := list(self._problems_of(task)):
                raise ValueError("; ".join(problems))
        return self

    def _problems_of(self, task: Task) -> Iterator[str]:
        target = self.evaluation.target
        metric = None if target is None else target.metric
        return check_task(task, self.evaluation.share_held_out, metric)

    @model_validator(mode="after")
    def _updates_can_be_aggregated(self) -> Settings:
        compression, clients = self.compression, self.clients
        codecs = compression.uplink, compression.fallback
        problems = [*check_rule(self.rule, *codecs, clients.minimum, clients.fraction)]
        target = self.evaluation.target is not None
        problems += check_evaluation(target, self.evaluation.evaluated_by)
        if self.private:
            evaluated = self.evaluation.clients
            problems += check_privacy(self.rule, *codecs, compression.broadcast, evaluated)
            task = self.explicit_task
            standardizes = task is not None and task.standardizes
            problems += check_privacy_of_sums(self.evaluation.share_held_out, standardizes)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def explicit_task(self) -> Task | None:
        """The task of the section [task]; None: the entry point takes it from the data set."""
        return None if self.task is None else self.task.made(self.training.loss)

    def check_task(self, task: Task) -> None:
        """Raise ServerError unless the settings fit a task that is not their own."""
        if problems := list(self._problems_of(task)):
            raise ServerError("\n".join(problems))

    def is_reached(self, scores: Mapping[str, float | None], round_: int) -> bool:
        """Whether a version's scores, known in this round, are good enough to end the run."""
        target = self.evaluation.target
        if target is None or (self.prunes and round_ < self._end_round):
            return False
        score = scores.get(target.metric)
        if score is None:
            return False
        return score == target.value or is_better(target.metric, score, target.value)

    @property
    def rule(self) -> Rule:
        """The aggregation rule."""
        return Rule(self.aggregation.rule, self.aggregation.byzantine)

    @property
    def private(self) -> bool:
        """Whether the run is differentially private."""
        return self.privacy.noise_multiplier > 0

    @property
    def forwards(self) -> bool:
        """Whether clients may get each other's updates, to average them as the server does."""
        return self.compression.broadcast == "auto" and not self.rule.is_robust

    @property
    def prunes(self) -> bool:
        """Whether the optimisation method prunes with a mask."""
        return self.optimization.method.prunes

    @property
    def _end_round(self) -> int:
        return self.optimization.end_round or max(
            self.optimization.begin_round, round(self.rounds * 2 / 3)
        )

    @property
    def sparsity(self) -> SparsitySchedule:
        """The sparsity schedule, dense for methods that do not prune."""
        if not self.prunes:
            return DENSE
        o = self.optimization
        return SparsitySchedule(o.final_sparsity, o.begin_round, self._end_round)

    @property
    def policy(self) -> Policy:
        """When rounds open and close, and whom they sample."""
        c = self.clients
        return Policy(
            self.rounds, c.minimum, c.fraction, c.quorum, c.deadline, c.patience, self.seed,
            min_updates=self.rule.min_updates, over_selection=c.over_selection,
        )  # fmt: skip

    def wanting_rounds(self, rounds: int) -> Settings:
        """Return the settings with another number of rounds; raise ServerError if that cannot be.

        A run that has begun goes on by `with_rounds`.
        """
        values = self.model_dump(exclude={"evaluation": {"every_client"}})
        try:
            return Settings.model_validate({**values, "rounds": rounds})
        except ValidationError as error:
            why = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
            raise ServerError(f"{rounds} rounds: {why}") from None

    def with_rounds(self, total: TotalRounds) -> Settings:
        """Return the settings of a run whose number of rounds is, or was raised to, `total`.

        The sparsity schedule stays the one that the run began with, and a run that is ended early
        the one that it was planned as.
        """
        begun = self.model_copy(update={"rounds": total.first})
        optimization = self.optimization
        if self.prunes and total.raised:
            optimization = optimization.model_copy(update={"end_round": begun._end_round})
        return self.model_copy(update={"rounds": total.planned, "optimization": optimization})

    def as_text(self) -> str:
        """Return the settings as JSON, without where the server listens and what it limits."""
        left_out: dict[str, Any] = dict.fromkeys(("server", "security", "limits"), True)
        return self.model_dump_json(exclude={**left_out, "evaluation": {"every_client"}})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings that must not change in mid-run (addresses and waits may)."""
        # Keys that older versions lacked count only if they differ from their defaults, so that
        # runs made before them keep their fingerprint.
        free: dict[str, Any] = dict.fromkeys(
            ("server", "output", "clients", "security", "limits"), True
        )
        evaluation = self.evaluation
        # The target only says when the run ends, and int8 what is done then.
        free["evaluation"] = {
            "clients", "int8", "target", *(["holdout"] * (evaluation.holdout is None)),
        }  # fmt: skip
        if self.training.loss in (None, DEFAULT_LOSS):
            free["training"] = {"loss"}
        if self.task is None:
            free["task"] = True
        if self.model.weights == ModelSettings().weights:
            free["model"] = {"weights"}
        if self.aggregation == AggregationSettings():
            free["aggregation"] = True
        if self.privacy == PrivacySettings():
            free["privacy"] = True
        text = self.model_dump_json(exclude=free)
        return hashlib.sha256(text.encode()).hexdigest()


def is_address(text: str) -> bool:
    """Whether a text is HOST:PORT."""
    return re.match(_ADDRESS, text) is not None


def load_settings(path: Path) -> Settings:
    """Return the settings in a run file; raise ServerError that names each wrong key."""
    return read_toml(path, Settings, "run file")


def read_toml(path: Path, section: type[AnySection], what: str) -> AnySection:
    """Return a TOML file as a `section`; raise ServerError that names each wrong key."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ServerError(f"cannot read {what} {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ServerError(f"{path} is not valid TOML: {error}") from error
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise _unusable(error, section, str(path), what) from None


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Return settings of nested values; raise ServerError that names each wrong key."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _unusable(error, Settings, "these settings", "settings") from None


def _unusable(
    error: ValidationError, section: type[BaseModel], where: str, what: str
) -> ServerError:
    lines = [_explain(item, section, what) for item in error.errors()]
    return ServerError("\n".join([f"{where} cannot be used:", *lines]))


def _explain(item: Any, root: type[BaseModel], what: str) -> str:
    """Return one line on an error of pydantic: the key, what is wrong, what would be right."""
    *parents, key = [str(part) for part in item["loc"]] or [what]
    dotted = ".".join([*parents, key])
    if item["type"] != "extra_forbidden":
        return f"  {dotted}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"
    known = sorted(_keys(root, parents))
    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"  {dotted}: unknown key; {hint}Known keys: {', '.join(known)}"


def _keys(section: type[BaseModel], parents: list[str]) -> list[str]:
    """Return the keys of the section that `parents` lead to."""
    for parent in parents:
        if parent.isdigit():  # an item of a list
            continue
        annotation = section.model_fields[parent].annotation
        section = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    return list(section.model_fields)
