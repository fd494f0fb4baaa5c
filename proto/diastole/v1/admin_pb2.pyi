from diastole.v1 import common_pb2 as _common_pb2
from diastole.v1 import device_pb2 as _device_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("run_id", "state", "method", "round", "rounds", "accuracy", "devices_online", "elapsed_seconds", "quarantined", "scores", "metric", "standing", "pausing")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Run.State]
        STATE_WAITING: _ClassVar[Run.State]
        STATE_RUNNING: _ClassVar[Run.State]
        STATE_FINISHED: _ClassVar[Run.State]
        STATE_STOPPED: _ClassVar[Run.State]
        STATE_QUEUED: _ClassVar[Run.State]
        STATE_PAUSED: _ClassVar[Run.State]
        STATE_HELD: _ClassVar[Run.State]
    STATE_UNSPECIFIED: Run.State
    STATE_WAITING: Run.State
    STATE_RUNNING: Run.State
    STATE_FINISHED: Run.State
    STATE_STOPPED: Run.State
    STATE_QUEUED: Run.State
    STATE_PAUSED: Run.State
    STATE_HELD: Run.State
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    DEVICES_ONLINE_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    PAUSING_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    state: Run.State
    method: str
    round: int
    rounds: int
    accuracy: float
    devices_online: int
    elapsed_seconds: float
    quarantined: int
    scores: _containers.ScalarMap[str, float]
    metric: str
    standing: str
    pausing: bool
    def __init__(self, run_id: _Optional[str] = ..., state: _Optional[_Union[Run.State, str]] = ..., method: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., accuracy: _Optional[float] = ..., devices_online: _Optional[int] = ..., elapsed_seconds: _Optional[float] = ..., quarantined: _Optional[int] = ..., scores: _Optional[_Mapping[str, float]] = ..., metric: _Optional[str] = ..., standing: _Optional[str] = ..., pausing: _Optional[bool] = ...) -> None: ...

class ShowRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ShowRunReply(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ("run_id", "after")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: str
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class ListDevicesReply(_message.Message):
    __slots__ = ("devices", "more")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    more: bool
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "state", "profile", "spec_json", "updates_accepted", "updates_quarantined", "bytes_down", "bytes_up", "train_seconds", "train_macs", "idle_seconds", "kept_out", "labels")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Device.State]
        STATE_IDLE: _ClassVar[Device.State]
        STATE_TRAINING: _ClassVar[Device.State]
        STATE_LOST: _ClassVar[Device.State]
        STATE_LEFT: _ClassVar[Device.State]
    STATE_UNSPECIFIED: Device.State
    STATE_IDLE: Device.State
    STATE_TRAINING: Device.State
    STATE_LOST: Device.State
    STATE_LEFT: Device.State
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    UPDATES_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    UPDATES_QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_MACS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KEPT_OUT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: Device.State
    profile: _common_pb2.DeviceProfile
    spec_json: str
    updates_accepted: int
    updates_quarantined: int
    bytes_down: int
    bytes_up: int
    train_seconds: float
    train_macs: float
    idle_seconds: float
    kept_out: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[Device.State, str]] = ..., profile: _Optional[_Union[_common_pb2.DeviceProfile, _Mapping]] = ..., spec_json: _Optional[str] = ..., updates_accepted: _Optional[int] = ..., updates_quarantined: _Optional[int] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., train_seconds: _Optional[float] = ..., train_macs: _Optional[float] = ..., idle_seconds: _Optional[float] = ..., kept_out: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ShowDeviceRequest(_message.Message):
    __slots__ = ("run_id", "name")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ShowDeviceReply(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: Device
    def __init__(self, device: _Optional[_Union[Device, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("run_id", "name")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ExplainReply(_message.Message):
    __slots__ = ("sizes",)
    SIZES_FIELD_NUMBER: _ClassVar[int]
    sizes: _containers.RepeatedCompositeFieldContainer[Fit]
    def __init__(self, sizes: _Optional[_Iterable[_Union[Fit, _Mapping]]] = ...) -> None: ...

class Fit(_message.Message):
    __slots__ = ("size", "fits", "why", "levers", "seconds", "correction")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    LEVERS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    size: str
    fits: bool
    why: str
    levers: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    correction: float
    def __init__(self, size: _Optional[str] = ..., fits: _Optional[bool] = ..., why: _Optional[str] = ..., levers: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ..., correction: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("run_id", "after")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: int
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "seconds", "kind", "json")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    number: int
    seconds: float
    kind: str
    json: str
    def __init__(self, number: _Optional[int] = ..., seconds: _Optional[float] = ..., kind: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class PauseReply(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ResumeReply(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class StartReply(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("run_id", "now")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    now: bool
    def __init__(self, run_id: _Optional[str] = ..., now: _Optional[bool] = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("experiment_json", "held")
    EXPERIMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    experiment_json: str
    held: bool
    def __init__(self, experiment_json: _Optional[str] = ..., held: _Optional[bool] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRoundsRequest(_message.Message):
    __slots__ = ("run_id", "skip")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    skip: int
    def __init__(self, run_id: _Optional[str] = ..., skip: _Optional[int] = ...) -> None: ...

class ListRoundsReply(_message.Message):
    __slots__ = ("rounds", "more")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    more: bool
    def __init__(self, rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("number", "open", "rolled_back", "closed_at", "updates", "abandoned", "scores", "sizes", "bytes_down", "bytes_up", "seconds", "server_seconds", "macs", "warnings")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    number: int
    open: bool
    rolled_back: bool
    closed_at: float
    updates: int
    abandoned: str
    scores: _containers.ScalarMap[str, float]
    sizes: _containers.RepeatedCompositeFieldContainer[SizeScores]
    bytes_down: int
    bytes_up: int
    seconds: float
    server_seconds: float
    macs: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, number: _Optional[int] = ..., open: _Optional[bool] = ..., rolled_back: _Optional[bool] = ..., closed_at: _Optional[float] = ..., updates: _Optional[int] = ..., abandoned: _Optional[str] = ..., scores: _Optional[_Mapping[str, float]] = ..., sizes: _Optional[_Iterable[_Union[SizeScores, _Mapping]]] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., seconds: _Optional[float] = ..., server_seconds: _Optional[float] = ..., macs: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class SizeScores(_message.Message):
    __slots__ = ("size", "scores")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    size: str
    scores: _containers.ScalarMap[str, float]
    def __init__(self, size: _Optional[str] = ..., scores: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ShowRoundRequest(_message.Message):
    __slots__ = ("run_id", "number")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    number: int
    def __init__(self, run_id: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class ShowRoundReply(_message.Message):
    __slots__ = ("round", "devices")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    round: Round
    devices: _containers.RepeatedCompositeFieldContainer[Assignment]
    def __init__(self, round: _Optional[_Union[Round, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[Assignment, _Mapping]]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("device", "size", "levers", "outcome", "reason", "examples", "loss", "seconds", "bytes_up")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[Assignment.Outcome]
        OUTCOME_OWED: _ClassVar[Assignment.Outcome]
        OUTCOME_ACCEPTED: _ClassVar[Assignment.Outcome]
        OUTCOME_QUARANTINED: _ClassVar[Assignment.Outcome]
        OUTCOME_DECLINED: _ClassVar[Assignment.Outcome]
        OUTCOME_LOST: _ClassVar[Assignment.Outcome]
    OUTCOME_UNSPECIFIED: Assignment.Outcome
    OUTCOME_OWED: Assignment.Outcome
    OUTCOME_ACCEPTED: Assignment.Outcome
    OUTCOME_QUARANTINED: Assignment.Outcome
    OUTCOME_DECLINED: Assignment.Outcome
    OUTCOME_LOST: Assignment.Outcome
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LEVERS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    device: str
    size: str
    levers: _containers.RepeatedScalarFieldContainer[str]
    outcome: Assignment.Outcome
    reason: str
    examples: int
    loss: float
    seconds: float
    bytes_up: int
    def __init__(self, device: _Optional[str] = ..., size: _Optional[str] = ..., levers: _Optional[_Iterable[str]] = ..., outcome: _Optional[_Union[Assignment.Outcome, str]] = ..., reason: _Optional[str] = ..., examples: _Optional[int] = ..., loss: _Optional[float] = ..., seconds: _Optional[float] = ..., bytes_up: _Optional[int] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ListCheckpointsReply(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("round", "bytes", "written_at", "scores")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_AT_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    round: int
    bytes: int
    written_at: float
    scores: _containers.ScalarMap[str, float]
    def __init__(self, round: _Optional[int] = ..., bytes: _Optional[int] = ..., written_at: _Optional[float] = ..., scores: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PullCheckpointRequest(_message.Message):
    __slots__ = ("run_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class PullCheckpointReply(_message.Message):
    __slots__ = ("file", "round", "run_id", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.ObjectRef
    round: int
    run_id: str
    data: bytes
    def __init__(self, file: _Optional[_Union[_common_pb2.ObjectRef, _Mapping]] = ..., round: _Optional[int] = ..., run_id: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("run_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class RollbackReply(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("name", "seconds", "operator")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    operator: bool
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ..., operator: _Optional[bool] = ...) -> None: ...

class InviteReply(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("name", "operator")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    operator: bool
    def __init__(self, name: _Optional[str] = ..., operator: _Optional[bool] = ...) -> None: ...

class RevokeReply(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: _Optional[bool] = ...) -> None: ...

class SuspendRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SuspendReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: _Optional[bool] = ...) -> None: ...

class LabelRequest(_message.Message):
    __slots__ = ("name", "set", "remove")
    class SetEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    name: str
    set: _containers.ScalarMap[str, str]
    remove: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., set: _Optional[_Mapping[str, str]] = ..., remove: _Optional[_Iterable[str]] = ...) -> None: ...

class LabelReply(_message.Message):
    __slots__ = ("labels",)
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("most",)
    MOST_FIELD_NUMBER: _ClassVar[int]
    most: int
    def __init__(self, most: _Optional[int] = ...) -> None: ...

class ListAuditReply(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedCompositeFieldContainer[AuditLine]
    def __init__(self, lines: _Optional[_Iterable[_Union[AuditLine, _Mapping]]] = ...) -> None: ...

class AuditLine(_message.Message):
    __slots__ = ("at", "who", "call", "detail", "outcome")
    AT_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    at: float
    who: str
    call: str
    detail: str
    outcome: str
    def __init__(self, at: _Optional[float] = ..., who: _Optional[str] = ..., call: _Optional[str] = ..., detail: _Optional[str] = ..., outcome: _Optional[str] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("after", "level", "run_id", "device", "follow")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    after: int
    level: str
    run_id: str
    device: str
    follow: bool
    def __init__(self, after: _Optional[int] = ..., level: _Optional[str] = ..., run_id: _Optional[str] = ..., device: _Optional[str] = ..., follow: _Optional[bool] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("number", "at", "level", "logger", "run_id", "round", "device", "message")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LOGGER_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    number: int
    at: float
    level: str
    logger: str
    run_id: str
    round: int
    device: str
    message: str
    def __init__(self, number: _Optional[int] = ..., at: _Optional[float] = ..., level: _Optional[str] = ..., logger: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., device: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
