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
    __slots__ = ("run_id", "state", "method", "round", "rounds", "accuracy", "devices_online", "elapsed_seconds", "quarantined", "scores", "metric", "standing")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Run.State]
        STATE_WAITING: _ClassVar[Run.State]
        STATE_RUNNING: _ClassVar[Run.State]
        STATE_FINISHED: _ClassVar[Run.State]
        STATE_STOPPED: _ClassVar[Run.State]
        STATE_QUEUED: _ClassVar[Run.State]
    STATE_UNSPECIFIED: Run.State
    STATE_WAITING: Run.State
    STATE_RUNNING: Run.State
    STATE_FINISHED: Run.State
    STATE_STOPPED: Run.State
    STATE_QUEUED: Run.State
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
    def __init__(self, run_id: _Optional[str] = ..., state: _Optional[_Union[Run.State, str]] = ..., method: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., accuracy: _Optional[float] = ..., devices_online: _Optional[int] = ..., elapsed_seconds: _Optional[float] = ..., quarantined: _Optional[int] = ..., scores: _Optional[_Mapping[str, float]] = ..., metric: _Optional[str] = ..., standing: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("name", "state", "profile", "spec_json", "updates_accepted", "updates_quarantined", "bytes_down", "bytes_up", "train_seconds", "train_macs", "idle_seconds", "kept_out")
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
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[Device.State, str]] = ..., profile: _Optional[_Union[_common_pb2.DeviceProfile, _Mapping]] = ..., spec_json: _Optional[str] = ..., updates_accepted: _Optional[int] = ..., updates_quarantined: _Optional[int] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., train_seconds: _Optional[float] = ..., train_macs: _Optional[float] = ..., idle_seconds: _Optional[float] = ..., kept_out: _Optional[str] = ...) -> None: ...

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

class CheckpointRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class CheckpointReply(_message.Message):
    __slots__ = ("path", "round")
    PATH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    path: str
    round: int
    def __init__(self, path: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("experiment_json",)
    EXPERIMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    experiment_json: str
    def __init__(self, experiment_json: _Optional[str] = ...) -> None: ...

class SubmitReply(_message.Message):
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
