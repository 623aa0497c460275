from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelFileKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TO_MEASURE: _ClassVar[ModelFileKind]
    INT8: _ClassVar[ModelFileKind]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    ACCEPTED: _ClassVar[Outcome]
    DUPLICATE: _ClassVar[Outcome]
    REFUSED: _ClassVar[Outcome]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONE: _ClassVar[Reason]
    LATE: _ClassVar[Reason]
    NOT_SELECTED: _ClassVar[Reason]
    WRONG_VERSION: _ClassVar[Reason]
    BAD_EXAMPLE_COUNT: _ClassVar[Reason]
    TOO_LARGE: _ClassVar[Reason]
    MALFORMED: _ClassVar[Reason]
    NON_FINITE: _ClassVar[Reason]
    BAD_NAME: _ClassVar[Reason]
    DATA_MISMATCH: _ClassVar[Reason]
    MISSING_CAPABILITY: _ClassVar[Reason]
    UNKNOWN_SESSION: _ClassVar[Reason]
    UNKNOWN_VERSION: _ClassVar[Reason]
    OUT_OF_RANGE: _ClassVar[Reason]
    BAD_TOKEN: _ClassVar[Reason]
    WRONG_IDENTITY: _ClassVar[Reason]
    TOO_MANY_CLIENTS: _ClassVar[Reason]
    BUSY: _ClassVar[Reason]
    TOO_SLOW: _ClassVar[Reason]
    STORAGE: _ClassVar[Reason]
    OUTLIER: _ClassVar[Reason]
    EXCLUDED: _ClassVar[Reason]
TO_MEASURE: ModelFileKind
INT8: ModelFileKind
OUTCOME_UNSPECIFIED: Outcome
ACCEPTED: Outcome
DUPLICATE: Outcome
REFUSED: Outcome
NONE: Reason
LATE: Reason
NOT_SELECTED: Reason
WRONG_VERSION: Reason
BAD_EXAMPLE_COUNT: Reason
TOO_LARGE: Reason
MALFORMED: Reason
NON_FINITE: Reason
BAD_NAME: Reason
DATA_MISMATCH: Reason
MISSING_CAPABILITY: Reason
UNKNOWN_SESSION: Reason
UNKNOWN_VERSION: Reason
OUT_OF_RANGE: Reason
BAD_TOKEN: Reason
WRONG_IDENTITY: Reason
TOO_MANY_CLIENTS: Reason
BUSY: Reason
TOO_SLOW: Reason
STORAGE: Reason
OUTLIER: Reason
EXCLUDED: Reason

class GetTaskRequest(_message.Message):
    __slots__ = ("client",)
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    client: str
    def __init__(self, client: _Optional[str] = ...) -> None: ...

class GetTaskReply(_message.Message):
    __slots__ = ("task", "loss", "holdout", "protocol")
    TASK_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    HOLDOUT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    task: Task
    loss: str
    holdout: float
    protocol: int
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., loss: _Optional[str] = ..., holdout: _Optional[float] = ..., protocol: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("inputs", "target", "metrics", "window")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    target: Target
    metrics: _containers.RepeatedScalarFieldContainer[str]
    window: Window
    def __init__(self, inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., metrics: _Optional[_Iterable[str]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("length", "stride", "horizon", "group")
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    length: int
    stride: int
    horizon: int
    group: str
    def __init__(self, length: _Optional[int] = ..., stride: _Optional[int] = ..., horizon: _Optional[int] = ..., group: _Optional[str] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("name", "dtype", "shape", "divide_by", "vocabulary", "standardize", "columns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DIVIDE_BY_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    STANDARDIZE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    divide_by: float
    vocabulary: int
    standardize: bool
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., divide_by: _Optional[float] = ..., vocabulary: _Optional[int] = ..., standardize: bool = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("kind", "shape", "class_names", "standardize", "columns", "parts", "name", "loss", "weight")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    STANDARDIZE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    class_names: _containers.RepeatedScalarFieldContainer[str]
    standardize: bool
    columns: _containers.RepeatedScalarFieldContainer[str]
    parts: _containers.RepeatedCompositeFieldContainer[Target]
    name: str
    loss: str
    weight: float
    def __init__(self, kind: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., class_names: _Optional[_Iterable[str]] = ..., standardize: bool = ..., columns: _Optional[_Iterable[str]] = ..., parts: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., name: _Optional[str] = ..., loss: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("inputs", "target", "targets")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[FeatureSums]
    target: FeatureSums
    targets: _containers.RepeatedCompositeFieldContainer[FeatureSums]
    def __init__(self, inputs: _Optional[_Iterable[_Union[FeatureSums, _Mapping]]] = ..., target: _Optional[_Union[FeatureSums, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[FeatureSums, _Mapping]]] = ...) -> None: ...

class FeatureSums(_message.Message):
    __slots__ = ("count", "sums", "squares")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    SQUARES_FIELD_NUMBER: _ClassVar[int]
    count: float
    sums: _containers.RepeatedScalarFieldContainer[float]
    squares: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, count: _Optional[float] = ..., sums: _Optional[_Iterable[float]] = ..., squares: _Optional[_Iterable[float]] = ...) -> None: ...

class Scaling(_message.Message):
    __slots__ = ("inputs", "target", "targets")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[FeatureScale]
    target: FeatureScale
    targets: _containers.RepeatedCompositeFieldContainer[FeatureScale]
    def __init__(self, inputs: _Optional[_Iterable[_Union[FeatureScale, _Mapping]]] = ..., target: _Optional[_Union[FeatureScale, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[FeatureScale, _Mapping]]] = ...) -> None: ...

class FeatureScale(_message.Message):
    __slots__ = ("mean", "deviation")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_FIELD_NUMBER: _ClassVar[int]
    mean: _containers.RepeatedScalarFieldContainer[float]
    deviation: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, mean: _Optional[_Iterable[float]] = ..., deviation: _Optional[_Iterable[float]] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("sums",)
    SUMS_FIELD_NUMBER: _ClassVar[int]
    sums: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sums: _Optional[_Iterable[float]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("client", "data", "capabilities")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    client: str
    data: DataSummary
    capabilities: Capabilities
    def __init__(self, client: _Optional[str] = ..., data: _Optional[_Union[DataSummary, _Mapping]] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ...) -> None: ...

class DataSummary(_message.Message):
    __slots__ = ("num_examples", "class_names", "num_classes", "inputs", "target", "statistics", "num_held_out", "targets")
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    NUM_HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    class_names: _containers.RepeatedScalarFieldContainer[str]
    num_classes: int
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSummary]
    target: TensorSummary
    statistics: Statistics
    num_held_out: int
    targets: _containers.RepeatedCompositeFieldContainer[TensorSummary]
    def __init__(self, num_examples: _Optional[int] = ..., class_names: _Optional[_Iterable[str]] = ..., num_classes: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[TensorSummary, _Mapping]]] = ..., target: _Optional[_Union[TensorSummary, _Mapping]] = ..., statistics: _Optional[_Union[Statistics, _Mapping]] = ..., num_held_out: _Optional[int] = ..., targets: _Optional[_Iterable[_Union[TensorSummary, _Mapping]]] = ...) -> None: ...

class TensorSummary(_message.Message):
    __slots__ = ("dtype", "shape", "num_classes")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    num_classes: int
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., num_classes: _Optional[int] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("stages", "methods", "runtime", "featherfed", "protocol")
    STAGES_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    FEATHERFED_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedScalarFieldContainer[str]
    methods: _containers.RepeatedScalarFieldContainer[str]
    runtime: str
    featherfed: str
    protocol: int
    def __init__(self, stages: _Optional[_Iterable[str]] = ..., methods: _Optional[_Iterable[str]] = ..., runtime: _Optional[str] = ..., featherfed: _Optional[str] = ..., protocol: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("session", "plan", "step", "protocol")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    session: int
    plan: Plan
    step: Step
    protocol: int
    def __init__(self, session: _Optional[int] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., protocol: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("digest", "size", "compressed")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    compressed: int
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ..., compressed: _Optional[int] = ...) -> None: ...

class FetchStepRequest(_message.Message):
    __slots__ = ("session", "offset")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session: int
    offset: int
    def __init__(self, session: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("run", "model_json", "manifest", "seed", "training", "optimization", "rounds", "heartbeat_seconds", "report", "task", "holdout", "last_round")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_JSON_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    HOLDOUT_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_FIELD_NUMBER: _ClassVar[int]
    run: str
    model_json: str
    manifest: _containers.RepeatedCompositeFieldContainer[Tensor]
    seed: int
    training: Training
    optimization: Optimization
    rounds: int
    heartbeat_seconds: int
    report: str
    task: Task
    holdout: float
    last_round: int
    def __init__(self, run: _Optional[str] = ..., model_json: _Optional[str] = ..., manifest: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., seed: _Optional[int] = ..., training: _Optional[_Union[Training, _Mapping]] = ..., optimization: _Optional[_Union[Optimization, _Mapping]] = ..., rounds: _Optional[int] = ..., heartbeat_seconds: _Optional[int] = ..., report: _Optional[str] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., holdout: _Optional[float] = ..., last_round: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "role", "fill", "uniform_limit", "prunable", "momentum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    FILL_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PRUNABLE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    role: str
    fill: float
    uniform_limit: float
    prunable: bool
    momentum: float
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., role: _Optional[str] = ..., fill: _Optional[float] = ..., uniform_limit: _Optional[float] = ..., prunable: bool = ..., momentum: _Optional[float] = ...) -> None: ...

class Training(_message.Message):
    __slots__ = ("epochs", "batch_size", "learning_rate", "optimizer", "loss")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str
    loss: str
    def __init__(self, epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., optimizer: _Optional[str] = ..., loss: _Optional[str] = ...) -> None: ...

class Optimization(_message.Message):
    __slots__ = ("method", "num_clusters")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    NUM_CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    method: str
    num_clusters: int
    def __init__(self, method: _Optional[str] = ..., num_clusters: _Optional[int] = ...) -> None: ...

class NextTaskRequest(_message.Message):
    __slots__ = ("session", "wait_seconds", "has_scaling", "health")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HAS_SCALING_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    session: int
    wait_seconds: int
    has_scaling: bool
    health: DeviceHealth
    def __init__(self, session: _Optional[int] = ..., wait_seconds: _Optional[int] = ..., has_scaling: bool = ..., health: _Optional[_Union[DeviceHealth, _Mapping]] = ...) -> None: ...

class NextTaskReply(_message.Message):
    __slots__ = ("train", "wait", "finished")
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    train: Train
    wait: Wait
    finished: Finished
    def __init__(self, train: _Optional[_Union[Train, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Train(_message.Message):
    __slots__ = ("round", "version", "codec", "sparsity", "digest", "slot", "slots", "scaling", "calibrate")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SPARSITY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    CALIBRATE_FIELD_NUMBER: _ClassVar[int]
    round: int
    version: int
    codec: str
    sparsity: float
    digest: bytes
    slot: int
    slots: int
    scaling: Scaling
    calibrate: bool
    def __init__(self, round: _Optional[int] = ..., version: _Optional[int] = ..., codec: _Optional[str] = ..., sparsity: _Optional[float] = ..., digest: _Optional[bytes] = ..., slot: _Optional[int] = ..., slots: _Optional[int] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ..., calibrate: bool = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Finished(_message.Message):
    __slots__ = ("version", "digest", "scaling", "measure_ranges", "evaluate_int8")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    MEASURE_RANGES_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_INT8_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: bytes
    scaling: Scaling
    measure_ranges: bool
    evaluate_int8: bool
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[bytes] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ..., measure_ranges: bool = ..., evaluate_int8: bool = ...) -> None: ...

class FetchModelRequest(_message.Message):
    __slots__ = ("session", "version", "have_version", "have_digest", "offset")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HAVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    HAVE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session: int
    version: int
    have_version: int
    have_digest: bytes
    offset: int
    def __init__(self, session: _Optional[int] = ..., version: _Optional[int] = ..., have_version: _Optional[int] = ..., have_digest: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class ModelChunk(_message.Message):
    __slots__ = ("links", "data", "offset")
    LINKS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    links: _containers.RepeatedCompositeFieldContainer[Link]
    data: bytes
    offset: int
    def __init__(self, links: _Optional[_Iterable[_Union[Link, _Mapping]]] = ..., data: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("kind", "version", "digest", "codec", "sparsity", "size", "allocation")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SEED: _ClassVar[Link.Kind]
        DELTA: _ClassVar[Link.Kind]
        SNAPSHOT: _ClassVar[Link.Kind]
        BUNDLE: _ClassVar[Link.Kind]
        PARTIAL: _ClassVar[Link.Kind]
    SEED: Link.Kind
    DELTA: Link.Kind
    SNAPSHOT: Link.Kind
    BUNDLE: Link.Kind
    PARTIAL: Link.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SPARSITY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ALLOCATION_FIELD_NUMBER: _ClassVar[int]
    kind: Link.Kind
    version: int
    digest: bytes
    codec: str
    sparsity: float
    size: int
    allocation: Allocation
    def __init__(self, kind: _Optional[_Union[Link.Kind, str]] = ..., version: _Optional[int] = ..., digest: _Optional[bytes] = ..., codec: _Optional[str] = ..., sparsity: _Optional[float] = ..., size: _Optional[int] = ..., allocation: _Optional[_Union[Allocation, _Mapping]] = ...) -> None: ...

class Allocation(_message.Message):
    __slots__ = ("levels", "profile")
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    levels: bytes
    profile: bytes
    def __init__(self, levels: _Optional[bytes] = ..., profile: _Optional[bytes] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("slots", "codec", "parts", "server_rate")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SERVER_RATE_FIELD_NUMBER: _ClassVar[int]
    slots: int
    codec: str
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    server_rate: int
    def __init__(self, slots: _Optional[int] = ..., codec: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., server_rate: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("slot", "num_examples", "codec", "payload", "clip")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    slot: int
    num_examples: int
    codec: str
    payload: bytes
    clip: int
    def __init__(self, slot: _Optional[int] = ..., num_examples: _Optional[int] = ..., codec: _Optional[str] = ..., payload: _Optional[bytes] = ..., clip: _Optional[int] = ...) -> None: ...

class FetchReleaseRequest(_message.Message):
    __slots__ = ("device", "kind", "have_digest", "wait_seconds", "offset", "offset_digest")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    HAVE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    OFFSET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    device: str
    kind: str
    have_digest: bytes
    wait_seconds: int
    offset: int
    offset_digest: bytes
    def __init__(self, device: _Optional[str] = ..., kind: _Optional[str] = ..., have_digest: _Optional[bytes] = ..., wait_seconds: _Optional[int] = ..., offset: _Optional[int] = ..., offset_digest: _Optional[bytes] = ...) -> None: ...

class ReleaseChunk(_message.Message):
    __slots__ = ("release", "data", "offset")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    release: Release
    data: bytes
    offset: int
    def __init__(self, release: _Optional[_Union[Release, _Mapping]] = ..., data: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("version", "digest", "size", "compressed", "delta")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: bytes
    size: int
    compressed: int
    delta: bool
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[bytes] = ..., size: _Optional[int] = ..., compressed: _Optional[int] = ..., delta: bool = ...) -> None: ...

class UpdateChunk(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("session", "round", "version", "num_examples", "size", "train_loss", "digest", "offset", "before", "after")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    session: int
    round: int
    version: int
    num_examples: int
    size: int
    train_loss: float
    digest: bytes
    offset: int
    before: Evaluation
    after: Evaluation
    def __init__(self, session: _Optional[int] = ..., round: _Optional[int] = ..., version: _Optional[int] = ..., num_examples: _Optional[int] = ..., size: _Optional[int] = ..., train_loss: _Optional[float] = ..., digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., before: _Optional[_Union[Evaluation, _Mapping]] = ..., after: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class ResumeUploadRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ...) -> None: ...

class ResumeUploadReply(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class EvaluationReport(_message.Message):
    __slots__ = ("session", "version", "evaluation", "digest", "goes_on")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GOES_ON_FIELD_NUMBER: _ClassVar[int]
    session: int
    version: int
    evaluation: Evaluation
    digest: bytes
    goes_on: bool
    def __init__(self, session: _Optional[int] = ..., version: _Optional[int] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., digest: _Optional[bytes] = ..., goes_on: bool = ...) -> None: ...

class EvaluationReceipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchModelFileRequest(_message.Message):
    __slots__ = ("session", "kind", "wait_seconds", "offset", "offset_digest", "have_digest")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    OFFSET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HAVE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    session: int
    kind: ModelFileKind
    wait_seconds: int
    offset: int
    offset_digest: bytes
    have_digest: bytes
    def __init__(self, session: _Optional[int] = ..., kind: _Optional[_Union[ModelFileKind, str]] = ..., wait_seconds: _Optional[int] = ..., offset: _Optional[int] = ..., offset_digest: _Optional[bytes] = ..., have_digest: _Optional[bytes] = ...) -> None: ...

class ModelFileChunk(_message.Message):
    __slots__ = ("file", "data", "offset")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    file: ModelFile
    data: bytes
    offset: int
    def __init__(self, file: _Optional[_Union[ModelFile, _Mapping]] = ..., data: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("digest", "size", "compressed", "inputs", "outputs", "against_measured")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    AGAINST_MEASURED_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    compressed: int
    inputs: _containers.RepeatedScalarFieldContainer[int]
    outputs: _containers.RepeatedScalarFieldContainer[int]
    against_measured: bool
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ..., compressed: _Optional[int] = ..., inputs: _Optional[_Iterable[int]] = ..., outputs: _Optional[_Iterable[int]] = ..., against_measured: bool = ...) -> None: ...

class RangesReport(_message.Message):
    __slots__ = ("session", "version", "digest", "lows", "highs", "num_examples")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOWS_FIELD_NUMBER: _ClassVar[int]
    HIGHS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    session: int
    version: int
    digest: bytes
    lows: _containers.RepeatedScalarFieldContainer[float]
    highs: _containers.RepeatedScalarFieldContainer[float]
    num_examples: int
    def __init__(self, session: _Optional[int] = ..., version: _Optional[int] = ..., digest: _Optional[bytes] = ..., lows: _Optional[_Iterable[float]] = ..., highs: _Optional[_Iterable[float]] = ..., num_examples: _Optional[int] = ...) -> None: ...

class RangesReceipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("session", "health")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    session: int
    health: DeviceHealth
    def __init__(self, session: _Optional[int] = ..., health: _Optional[_Union[DeviceHealth, _Mapping]] = ...) -> None: ...

class DeviceHealth(_message.Message):
    __slots__ = ("temperature", "battery")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    temperature: int
    battery: int
    def __init__(self, temperature: _Optional[int] = ..., battery: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("outcome", "reason", "detail")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    reason: Reason
    detail: str
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("run", "phase", "round", "rounds", "version", "uplink_bytes", "downlink_bytes", "wanted_clients", "discarded_rounds", "client_counts", "metric", "score")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPLINK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWNLINK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WANTED_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    run: str
    phase: str
    round: int
    rounds: int
    version: int
    uplink_bytes: int
    downlink_bytes: int
    wanted_clients: int
    discarded_rounds: int
    client_counts: ClientCounts
    metric: str
    score: float
    def __init__(self, run: _Optional[str] = ..., phase: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., version: _Optional[int] = ..., uplink_bytes: _Optional[int] = ..., downlink_bytes: _Optional[int] = ..., wanted_clients: _Optional[int] = ..., discarded_rounds: _Optional[int] = ..., client_counts: _Optional[_Union[ClientCounts, _Mapping]] = ..., metric: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class ClientCounts(_message.Message):
    __slots__ = ("present", "training", "reported", "lost", "late")
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    present: int
    training: int
    reported: int
    lost: int
    late: int
    def __init__(self, present: _Optional[int] = ..., training: _Optional[int] = ..., reported: _Optional[int] = ..., lost: _Optional[int] = ..., late: _Optional[int] = ...) -> None: ...
