"""What an agent says that it would send, against what it sends."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from diastole.client.explain import HIDDEN, OTHER, PROFILE, UPDATE, explain
from diastole.client.statefolder import StateFolder
from diastole.client.terms import Terms
from diastole.models.training import Examples
from diastole.proto.profile import Profile
from diastole.v1 import common_pb2, device_pb2

ME = Profile("small", 45, 5_000_000, 1.5e9, cores=4, codecs=("int8",), speeds={"dense": 2e9}, simd_block=8)


def told(terms: Terms, **changes: Any) -> str:
    arguments: dict[str, Any] = {"encrypted": True} | changes
    return "\n".join(explain("example.org:7700", "phone", ME.message("1.2"), terms, **arguments))


def test_every_field_that_a_device_sends_is_explained() -> None:
    service = device_pb2.DESCRIPTOR.services_by_name["DeviceService"]
    known = {
        "DeviceProfile": {*PROFILE},
        "UploadHeader": {*UPDATE, *HIDDEN},
    }

    def check(message: Descriptor) -> None:
        for field in message.fields:
            inside = field.message_type
            if inside is not None and inside.name in ("DeviceProfile", "UploadHeader"):
                check(inside)
                continue
            assert field.name in known.get(message.name, {*OTHER, *HIDDEN}), f"{message.name}.{field.name}"

    for method in service.methods:
        check(method.input_type)
    assert {*PROFILE} == {field.name for field in common_pb2.DeviceProfile.DESCRIPTOR.fields}


def test_values_are_those_that_would_be_announced(tmp_path: Path) -> None:
    text = told(Terms(StateFolder(tmp_path / "state"), personal="head"))
    for part in ("example.org:7700, encrypted", "phone", "small", "5000000", "1.5e+09", "int8", "dense 2e+09", "1.2"):
        assert part in text
    assert f"In {tmp_path / 'state'} it keeps" in text
    assert "a model of its own (--personal head)" in text
    assert "plain text" in told(Terms(), encrypted=False)
    assert "keeps no files" in told(Terms())


@pytest.mark.parametrize(("shares", "count", "said"), [(True, 5, True), (True, 0, False), (False, 5, False)])
def test_scores_are_said_to_be_sent_only_if_they_are(shares: bool, count: int, said: bool) -> None:
    kept = Examples.empty().part(0, 0) if not count else Examples(*(2 * [Examples.empty().y.new_zeros(count)]))
    text = told(Terms(kept=lambda: kept, share_scores=shares))
    assert ("how the sub-model did on your test examples" in text) == said
    assert ("are not sent (--share-scores)" in text) == (not shares)
