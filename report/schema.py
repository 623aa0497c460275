"""The schema of metrics.json (docs/metrics.md): reads and checks it into frozen objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

SCHEMA = 2


class ReportError(ValueError):
    """A report that cannot be made; the message names the file and what to do."""


def printable(text: str) -> str:
    """Return `text` with control, bidi and surrogate characters replaced; names are hostile."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _text_pairs(value: Any) -> Any:
    """Return the items of a free-form object as pairs of texts."""
    if not isinstance(value, dict):
        return value
    return tuple((k, v if isinstance(v, str) else json.dumps(v)) for k, v in value.items())


Text = Annotated[str, AfterValidator(printable)]
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
TextPairs = Annotated[tuple[tuple[Text, Text], ...], BeforeValidator(_text_pairs)]
Scores = Annotated[Mapping[Text, float | None], AfterValidator(MappingProxyType)]
"""Loss and metrics by name; None where they are not known, or not yet."""
NO_SCORES: Mapping[str, float | None] = MappingProxyType({})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Traffic(_Part):
    """Bytes in one direction; `message` includes the payload, but not control and retries."""

    payload: Count = Field(alias="payload_bytes")
    message: Count = Field(alias="message_bytes")
    control: Count = Field(alias="control_bytes")
    retry: Count = Field(alias="retry_bytes")

    @property
    def sent(self) -> int:
        """Everything that went over the link."""
        return self.message + self.control + self.retry

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            payload_bytes=self.payload + other.payload,
            message_bytes=self.message + other.message,
            control_bytes=self.control + other.control,
            retry_bytes=self.retry + other.retry,
        )


NOTHING_SENT = Traffic(payload_bytes=0, message_bytes=0, control_bytes=0, retry_bytes=0)


class InputReport(_Part):
    """One input of the task, of the shape of one example."""

    name: Text
    dtype: Text
    shape: tuple[Count, ...]
    divide_by: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 255.0
    vocabulary: Count = 0
    standardize: bool = False


class TargetReport(_Part):
    """What the model shall answer; `kind` is class, labels, values, input or several.

    `name`, `loss` and `weight` are those of one of several targets; `parts` are the targets of one
    of kind several.
    """

    kind: Text
    shape: tuple[Count, ...] = ()
    class_names: tuple[Text, ...] = ()
    standardize: bool = False
    name: Text = ""
    loss: Text = ""
    weight: float = 1.0
    parts: tuple[TargetReport, ...] = ()


class TaskReport(_Part):
    """What was learned."""

    inputs: Annotated[tuple[InputReport, ...], Field(min_length=1)]
    target: TargetReport
    loss: Text = ""
    metrics: tuple[Text, ...]

    @model_validator(mode="before")
    @classmethod
    def _with_one_target(cls, values: Any) -> Any:
        """Return `targets`, if there are several, as the parts of one target."""
        if not isinstance(values, dict) or "targets" not in values:
            return values
        if not isinstance(values["targets"], list) or not 2 <= len(values["targets"]) <= 16:
            raise ValueError("targets: 2 to 16 are possible")
        rest = {key: value for key, value in values.items() if key != "targets"}
        return {**rest, "target": {"kind": "several", "parts": values["targets"]}}

    @property
    def parts(self) -> tuple[TaskReport, ...]:
        """The task of each target alone, in the order of the model's outputs."""
        if not self.target.parts:
            return (self,)
        return tuple(
            self.model_copy(update={"target": part, "loss": part.loss})
            for part in self.target.parts
        )

    @property
    def loss_text(self) -> str:
        """The loss by name, of several targets as a sum."""
        if not self.target.parts:
            return self.loss
        return " + ".join(
            f"{'' if part.weight == 1 else f'{part.weight:g} '}{part.loss} ({part.name})"
            for part in self.target.parts
        )

    @property
    def is_images(self) -> bool:
        """Whether the task is to tell classes of pictures apart."""
        first, target = self.inputs[0], self.target
        return (
            len(self.inputs) == 1
            and first.dtype == "uint8"
            and len(first.shape) == 3
            and first.shape[2] in (1, 3)
            and target.kind == "class"
            and not target.shape
        )


class MetricReport(_Part):
    """The metric that decides which of two models is better."""

    name: Text
    larger_is_better: Annotated[bool, Field(strict=True)]

    def of(self, scores: Mapping[str, float | None] | None) -> float | None:
        """Return its value among scores, None while that is unknown."""
        return None if scores is None else scores.get(self.name)


class UpdateReport(_Part):
    """What one client did in one round; None where it was not measured.

    `scores` are of its trained model on the server's test examples, `before` and `after` of the
    round's first model and of its own trained one on examples that the client held out. `arrived`:
    when its update was accepted, in seconds after the round opened.
    """

    client: Text
    runtime: Text = ""
    num_examples: Count
    scores: Scores | None = None
    before: Scores | None = None
    after: Scores | None = None
    train_loss: float | None
    arrived: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    uplink: Traffic
    downlink: Traffic


class RefusalReport(_Part):
    """A message or update of a client that the server refused, and why."""

    client: Text
    reason: Text
    count: Annotated[Count, Field(ge=1)] = 1
    detail: Text = ""


class RoundReport(_Part):
    """One closed round; `updates` holds only those that were aggregated.

    `spread` holds the lowest and the highest leading metric of single clients. `noise` is what
    codecs left in the mean, as a multiple of the updates' energy, and `bytes_for_noise_1` about
    what an update would take for as much noise as update; None where that cannot be told. `asked`:
    how many clients were told to train, None in files of older versions.
    """

    number: Count = Field(alias="round")
    scores: Scores
    spread: tuple[float, ...] | None = None
    opened: Text = ""
    asked: Count | None = None
    seconds: float | None
    version: Count
    digest: Text
    broadcast: Text = ""
    sparsity: float | None
    updates: tuple[UpdateReport, ...] = Field(alias="clients")
    missing: tuple[Text, ...]
    refused: tuple[RefusalReport, ...]
    wasted: Count | None = Field(None, alias="wasted_bytes")
    clip: float | None = None
    clipped: Count | None = None
    epsilon: float | None = None
    discarded: Text = ""
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    bytes_for_noise_1: Count | None = None
    weight_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    byte_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None

    @property
    def away(self) -> int:
        """How many clients have no update in the round; unauthenticated peers count as one."""
        counted = {update.client for update in self.updates}
        return len({*self.missing, *(item.client for item in self.refused)} - counted)


class InputTensor(_Part):
    """An input tensor of a file; scale and zero point only if it is quantized."""

    name: Text = ""
    dtype: Text
    scale: float | None = None
    zero_point: int | None = None


class ModelReport(_Part):
    """One exported file, and what it costs on one thread; None where it was not measured.

    `evaluated_by`: clients, if the scores are theirs; else empty.
    """

    file: Text
    kind: Text
    size: Count = Field(alias="bytes")
    gzip_size: Count | None = Field(None, alias="gzip_bytes")
    scores: Scores = Field(default_factory=lambda: NO_SCORES)
    num_examples: Count | None = None
    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    memory: Count | None = Field(None, alias="memory_bytes")
    idle_memory: Count | None = Field(None, alias="idle_memory_bytes")
    inputs: tuple[InputTensor, ...] = ()
    runtime: Text = ""
    evaluated_by: Text = ""


class FailedFile(_Part):
    """A model file that could not be made."""

    file: Text
    why: Text


class DeliveryReport(_Part):
    """Bytes that took the final model to one client, and its scores there if the client told."""

    client: Text
    downlink: Traffic
    scores: Scores | None = None


class DeviceReport(_Part):
    """Bytes of a device that only infers, in both directions."""

    device: Text
    uplink: Traffic
    downlink: Traffic


class TotalsReport(_Part):
    """All bytes of the run."""

    uplink: Traffic
    downlink: Traffic


class PrivacyReport(_Part):
    """What a differentially private run has spent on the client that took part most often."""

    epsilon: float
    delta: float
    noise_multiplier: float
    rounds: Count


class FinalReport(_Part):
    """How a finished run ended.

    `confusion`: how many test examples of each true class (a row) the final model took for each
    class (a column).
    """

    scores: Scores
    digest: Text
    version: Count
    sparsity: float | None
    seconds: float | None
    deliveries: tuple[DeliveryReport, ...] = Field(alias="clients")
    totals: TotalsReport
    models: tuple[ModelReport, ...]
    failed: tuple[FailedFile, ...] = ()
    num_calibration_examples: Count | None = None
    privacy: PrivacyReport | None = None
    confusion: tuple[tuple[Count, ...], ...] | None = None


class RunReport(_Part):
    """A whole metrics.json; `final` is None until the run has finished.

    `dataset` is the server's, None if it has no data.
    """

    schema_: Annotated[int, Field(alias="schema", strict=True)]
    featherfed: Text
    name: Text = Field(alias="run")
    dataset: Text | None
    task: TaskReport
    metric: MetricReport
    evaluated_by: Literal["server", "clients"] | None
    num_test_examples: Count
    num_parameters: Count
    float32_bytes: Annotated[Count, Field(ge=1)]
    settings: TextPairs = ()
    started: Text = ""
    machine: TextPairs = ()
    rounds: tuple[RoundReport, ...]
    releases: tuple[DeviceReport, ...] = ()
    final: FinalReport | None = None

    @property
    def runtimes(self) -> dict[str, str]:
        """The runtime each client trained with, where it is known."""
        return {u.client: u.runtime for r in self.rounds for u in r.updates if u.runtime}

    @property
    def client_names(self) -> tuple[str, ...]:
        """Every client whose update counted, in the order of first appearance."""
        return tuple(dict.fromkeys(u.client for r in self.rounds for u in r.updates))


def read_metrics(path: Path) -> RunReport:
    """Read and check a metrics.json. Raises ReportError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReportError(
            f"{path}: no such file; give the output folder of a run (it holds metrics.json)"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(
            f"{path}: not readable JSON ({error}); run again, or restore the file"
        ) from error
    try:
        return parse_metrics(data)
    except ReportError as error:
        raise ReportError(f"{path}: {error}; see docs/metrics.md for what it must hold") from error


def parse_metrics(data: object) -> RunReport:
    """Check the object of a metrics.json. Raises ReportError naming the key that is wrong."""
    # First, since a file of another schema has other keys.
    if isinstance(data, dict) and data.get("schema", SCHEMA) != SCHEMA:
        raise ReportError(
            f"schema is {data['schema']!r:.60}, this featherfed reads {SCHEMA}; install the "
            "featherfed that wrote it"
        )
    try:
        return RunReport.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ReportError(f"{where} is {first['input']!r:.60}: {first['msg']}") from None
