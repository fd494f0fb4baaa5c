import re
import subprocess
from pathlib import Path

import pytest

from diastole.proto.generate import PACKAGE, PROTO, generate
from diastole.v1 import admin_pb2, common_pb2, device_pb2, enroll_pb2, infer_pb2

FILES = sorted((PROTO / PACKAGE).glob("*.proto"))
MODULES = {"admin": admin_pb2, "common": common_pb2, "device": device_pb2, "enroll": enroll_pb2, "infer": infer_pb2}
GENERATED = re.compile(r".*_pb2(_grpc)?\.pyi?$")


def test_the_committed_code_is_what_the_contract_generates(tmp_path: Path) -> None:
    written = generate(tmp_path)
    names = {path.name for path in written}
    committed = {path.name for path in (PROTO / PACKAGE).iterdir() if GENERATED.match(path.name)}
    assert names == committed, "run make proto"
    for path in written:
        assert path.read_bytes() == (PROTO / PACKAGE / path.name).read_bytes(), f"{path.name} is stale: run make proto"


def test_a_file_without_a_service_has_no_stubs(tmp_path: Path) -> None:
    names = {path.name for path in generate(tmp_path)}
    assert "common_pb2.py" in names
    assert "common_pb2_grpc.py" not in names
    assert {"admin_pb2_grpc.py", "device_pb2_grpc.py"} <= names


def test_a_contract_that_does_not_parse_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / PACKAGE).mkdir(parents=True)
    (source / PACKAGE / "broken.proto").write_text('syntax = "proto3";\nmessage {')
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(subprocess.CalledProcessError):
        generate(target, source)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_call_says_what_it_does(path: Path) -> None:
    lines = path.read_text().splitlines()
    calls = [number for number, line in enumerate(lines) if line.strip().startswith("rpc ")]
    for number in calls:
        assert lines[number - 1].strip().startswith("//"), f"{path.name}:{number + 1} has no comment"
    module = MODULES[path.stem]
    services = module.DESCRIPTOR.services_by_name.values()
    assert len(calls) == sum(len(service.methods) for service in services)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_says_what_it_is_for_and_every_zero_is_unspecified(path: Path) -> None:
    assert path.read_text().startswith("// ")
    module = MODULES[path.stem]
    enums = [enum for message in module.DESCRIPTOR.message_types_by_name.values() for enum in message.enum_types]
    enums += module.DESCRIPTOR.enum_types_by_name.values()
    for enum in enums:
        assert enum.values_by_number[0].name == f"{enum.name.upper()}_UNSPECIFIED"
