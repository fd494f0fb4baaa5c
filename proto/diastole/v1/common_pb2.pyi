from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ObjectRef(_message.Message):
    __slots__ = ("sha256", "size")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size: int
    def __init__(self, sha256: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class Speed(_message.Message):
    __slots__ = ("kind", "per_second")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    kind: str
    per_second: float
    def __init__(self, kind: _Optional[str] = ..., per_second: _Optional[float] = ...) -> None: ...

class DeviceProfile(_message.Message):
    __slots__ = ("tier", "memory_bytes", "macs_per_second", "bytes_per_second_down", "bytes_per_second_up", "cpu_cores", "examples", "agent_version", "codecs", "speeds", "simd_block", "levers", "class_counts", "memory_free")
    TIER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MACS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_UP_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    SPEEDS_FIELD_NUMBER: _ClassVar[int]
    SIMD_BLOCK_FIELD_NUMBER: _ClassVar[int]
    LEVERS_FIELD_NUMBER: _ClassVar[int]
    CLASS_COUNTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_FIELD_NUMBER: _ClassVar[int]
    tier: str
    memory_bytes: int
    macs_per_second: float
    bytes_per_second_down: float
    bytes_per_second_up: float
    cpu_cores: int
    examples: int
    agent_version: str
    codecs: _containers.RepeatedScalarFieldContainer[str]
    speeds: _containers.RepeatedCompositeFieldContainer[Speed]
    simd_block: int
    levers: _containers.RepeatedScalarFieldContainer[str]
    class_counts: _containers.RepeatedScalarFieldContainer[int]
    memory_free: bool
    def __init__(self, tier: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., macs_per_second: _Optional[float] = ..., bytes_per_second_down: _Optional[float] = ..., bytes_per_second_up: _Optional[float] = ..., cpu_cores: _Optional[int] = ..., examples: _Optional[int] = ..., agent_version: _Optional[str] = ..., codecs: _Optional[_Iterable[str]] = ..., speeds: _Optional[_Iterable[_Union[Speed, _Mapping]]] = ..., simd_block: _Optional[int] = ..., levers: _Optional[_Iterable[str]] = ..., class_counts: _Optional[_Iterable[int]] = ..., memory_free: _Optional[bool] = ...) -> None: ...
