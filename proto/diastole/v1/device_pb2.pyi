from diastole.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("protocol_versions",)
    PROTOCOL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    protocol_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, protocol_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol_version", "run_id", "model_json", "runs", "keeps", "version", "clock_seconds")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_JSON_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    run_id: str
    model_json: str
    runs: _containers.RepeatedCompositeFieldContainer[OfferedRun]
    keeps: bool
    version: str
    clock_seconds: float
    def __init__(self, protocol_version: _Optional[int] = ..., run_id: _Optional[str] = ..., model_json: _Optional[str] = ..., runs: _Optional[_Iterable[_Union[OfferedRun, _Mapping]]] = ..., keeps: _Optional[bool] = ..., version: _Optional[str] = ..., clock_seconds: _Optional[float] = ...) -> None: ...

class OfferedRun(_message.Message):
    __slots__ = ("run_id", "model_json")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_JSON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    model_json: str
    def __init__(self, run_id: _Optional[str] = ..., model_json: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol_version", "name", "profile", "model_schema", "key", "runs")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MODEL_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    name: str
    profile: _common_pb2.DeviceProfile
    model_schema: str
    key: str
    runs: _containers.RepeatedCompositeFieldContainer[ServedRun]
    def __init__(self, protocol_version: _Optional[int] = ..., name: _Optional[str] = ..., profile: _Optional[_Union[_common_pb2.DeviceProfile, _Mapping]] = ..., model_schema: _Optional[str] = ..., key: _Optional[str] = ..., runs: _Optional[_Iterable[_Union[ServedRun, _Mapping]]] = ...) -> None: ...

class ServedRun(_message.Message):
    __slots__ = ("run_id", "model_schema")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    model_schema: str
    def __init__(self, run_id: _Optional[str] = ..., model_schema: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("session", "lease_seconds")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    session: str
    lease_seconds: float
    def __init__(self, session: _Optional[str] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class TasksRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("train", "finish", "cancel", "changed")
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    train: TrainTask
    finish: Finish
    cancel: Cancel
    changed: Changed
    def __init__(self, train: _Optional[_Union[TrainTask, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., changed: _Optional[_Union[Changed, _Mapping]] = ...) -> None: ...

class TrainTask(_message.Message):
    __slots__ = ("task_id", "round", "spec_json", "model", "training_json", "seed", "deadline_seconds", "max_upload_bytes", "progress", "codec", "untrained", "levers_json", "coding", "metric", "run_id", "threads")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAINING_JSON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    UNTRAINED_FIELD_NUMBER: _ClassVar[int]
    LEVERS_JSON_FIELD_NUMBER: _ClassVar[int]
    CODING_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    round: int
    spec_json: str
    model: _common_pb2.ObjectRef
    training_json: str
    seed: int
    deadline_seconds: float
    max_upload_bytes: int
    progress: float
    codec: str
    untrained: _common_pb2.ObjectRef
    levers_json: str
    coding: Coding
    metric: str
    run_id: str
    threads: int
    def __init__(self, task_id: _Optional[str] = ..., round: _Optional[int] = ..., spec_json: _Optional[str] = ..., model: _Optional[_Union[_common_pb2.ObjectRef, _Mapping]] = ..., training_json: _Optional[str] = ..., seed: _Optional[int] = ..., deadline_seconds: _Optional[float] = ..., max_upload_bytes: _Optional[int] = ..., progress: _Optional[float] = ..., codec: _Optional[str] = ..., untrained: _Optional[_Union[_common_pb2.ObjectRef, _Mapping]] = ..., levers_json: _Optional[str] = ..., coding: _Optional[_Union[Coding, _Mapping]] = ..., metric: _Optional[str] = ..., run_id: _Optional[str] = ..., threads: _Optional[int] = ...) -> None: ...

class Coding(_message.Message):
    __slots__ = ("update", "version", "change", "steps")
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    update: str
    version: str
    change: str
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    def __init__(self, update: _Optional[str] = ..., version: _Optional[str] = ..., change: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("base", "change")
    BASE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    base: str
    change: _common_pb2.ObjectRef
    def __init__(self, base: _Optional[str] = ..., change: _Optional[_Union[_common_pb2.ObjectRef, _Mapping]] = ...) -> None: ...

class Changed(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Finish(_message.Message):
    __slots__ = ("message", "failed")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    message: str
    failed: bool
    def __init__(self, message: _Optional[str] = ..., failed: _Optional[bool] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("session", "sha256", "offset")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session: str
    sha256: str
    offset: int
    def __init__(self, session: _Optional[str] = ..., sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class UploadStatusRequest(_message.Message):
    __slots__ = ("session", "task_id", "sha256")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    session: str
    task_id: str
    sha256: str
    def __init__(self, session: _Optional[str] = ..., task_id: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class UploadStatusReply(_message.Message):
    __slots__ = ("offset", "complete", "outcome")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    offset: int
    complete: bool
    outcome: UploadReply.Outcome
    def __init__(self, offset: _Optional[int] = ..., complete: _Optional[bool] = ..., outcome: _Optional[_Union[UploadReply.Outcome, str]] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("session", "task_id", "update", "offset", "examples", "loss", "train_seconds", "scores")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    session: str
    task_id: str
    update: _common_pb2.ObjectRef
    offset: int
    examples: int
    loss: float
    train_seconds: float
    scores: DeviceScores
    def __init__(self, session: _Optional[str] = ..., task_id: _Optional[str] = ..., update: _Optional[_Union[_common_pb2.ObjectRef, _Mapping]] = ..., offset: _Optional[int] = ..., examples: _Optional[int] = ..., loss: _Optional[float] = ..., train_seconds: _Optional[float] = ..., scores: _Optional[_Union[DeviceScores, _Mapping]] = ...) -> None: ...

class DeviceScores(_message.Message):
    __slots__ = ("examples", "before", "after")
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    examples: int
    before: float
    after: float
    def __init__(self, examples: _Optional[int] = ..., before: _Optional[float] = ..., after: _Optional[float] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("outcome",)
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[UploadReply.Outcome]
        OUTCOME_ACCEPTED: _ClassVar[UploadReply.Outcome]
        OUTCOME_NOT_NEEDED: _ClassVar[UploadReply.Outcome]
        OUTCOME_UNKNOWN_TASK: _ClassVar[UploadReply.Outcome]
    OUTCOME_UNSPECIFIED: UploadReply.Outcome
    OUTCOME_ACCEPTED: UploadReply.Outcome
    OUTCOME_NOT_NEEDED: UploadReply.Outcome
    OUTCOME_UNKNOWN_TASK: UploadReply.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: UploadReply.Outcome
    def __init__(self, outcome: _Optional[_Union[UploadReply.Outcome, str]] = ...) -> None: ...

class DeclineRequest(_message.Message):
    __slots__ = ("session", "task_id", "why", "message")
    class Why(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WHY_UNSPECIFIED: _ClassVar[DeclineRequest.Why]
        WHY_MEMORY: _ClassVar[DeclineRequest.Why]
        WHY_PAUSED: _ClassVar[DeclineRequest.Why]
    WHY_UNSPECIFIED: DeclineRequest.Why
    WHY_MEMORY: DeclineRequest.Why
    WHY_PAUSED: DeclineRequest.Why
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session: str
    task_id: str
    why: DeclineRequest.Why
    message: str
    def __init__(self, session: _Optional[str] = ..., task_id: _Optional[str] = ..., why: _Optional[_Union[DeclineRequest.Why, str]] = ..., message: _Optional[str] = ...) -> None: ...

class DeclineReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("session", "lease_seconds")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    session: str
    lease_seconds: float
    def __init__(self, session: _Optional[str] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("lease_seconds",)
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    lease_seconds: float
    def __init__(self, lease_seconds: _Optional[float] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session", "message")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session: str
    message: str
    def __init__(self, session: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("name", "signing_request")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    signing_request: bytes
    def __init__(self, name: _Optional[str] = ..., signing_request: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...
