"""Whatever arrives, or is found on disk: it is read, or refused with the error that is documented, and nothing else."""

import json
import resource
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from diastole.cli.calling import _in_file, renewed
from diastole.client.errors import FolderError, ModelFileError, RefusedError
from diastole.client.identities import Identities
from diastole.client.model_file import ModelFile
from diastole.client.offer import read_offer
from diastole.client.offered import Offered
from diastole.experiments.entry import made
from diastole.experiments.errors import ExperimentError
from diastole.experiments.experiment import Experiment
from diastole.models.errors import ModelError
from diastole.models.levers import Levers
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.task import Report
from diastole.models.training import Examples, TrainConfig
from diastole.proto.address import Address, NoAddressError
from diastole.proto.errors import DiastoleError
from diastole.proto.framing import read_part, write_part
from diastole.proto.identity import Identity
from diastole.proto.invitation import Token, TokenError
from diastole.proto.payload import PayloadError, decode, encode
from diastole.proto.profile import Profile
from diastole.server import errors as server
from diastole.server.security.authority import Authority, RequestError
from diastole.server.security.enrollment import Enrollment
from diastole.server.snapshot import Snapshot, SnapshotError
from diastole.server.store.attendance import Attendance
from diastole.server.store.journal import Journal
from diastole.server.store.memory import MemoryStore
from diastole.server.store.sql import SqlStore
from diastole.server.store.store import Assigned, Outcome, Present, Settled
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

EXAMPLES = Path(__file__).resolve().parents[2] / "simulations" / "examples"
STATE = {"w": torch.ones(2, 3), "b": torch.zeros(3)}
LONGEST_LINE = 2000
MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(4, 4))
TOLD = (DiastoleError, DecodeError)
"""A message that is none never gets as far as us."""

MOST_KIB = 64 << 10
"""By which reading some kB may make this process larger."""

Case = tuple[bytes, Callable[[bytes], object], type[Exception] | tuple[type[Exception], ...]]


def text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("latin-1"))


def file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def found(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return found


def address(folder: Path) -> Case:
    return b"[2001:db8::7]:7700", text(Address.parse), NoAddressError


def token(folder: Path) -> Case:
    enrollment = Enrollment(folder / "ca")
    enrollment.port = 1
    return enrollment.invite("one").encode(), text(Token.parse), TokenError


def signing_request(folder: Path) -> Case:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    sample, authority = request.public_bytes(serialization.Encoding.DER), Authority(folder / "ca")
    return sample, lambda data: authority.certify("one", data), RequestError


def identity(folder: Path) -> Case:
    (folder / "identity").mkdir()
    sample = Identity("one", Authority(folder / "ca").certificate.decode(), "certificate", "key").text().encode()
    known = Identities(folder)
    return sample, file(folder / "identity" / "x.json", lambda _: known.at("192.0.2.1:1", ask=False)), FolderError


def enrolled_devices(folder: Path) -> Case:
    enrollment = Enrollment(folder / "ca")
    enrollment.issue("two")
    path = folder / "ca" / "devices.json"
    return path.read_bytes(), file(path, lambda _: Enrollment(folder / "ca").listed("two", "x")), server.FolderError


def authority_key(folder: Path) -> Case:
    Authority(folder / "ca")
    path = folder / "ca" / "ca.key"
    return path.read_bytes(), file(path, lambda _: Authority(folder / "ca")), server.FolderError


def experiment(folder: Path) -> Case:
    sample = (EXAMPLES / "digits.toml").read_bytes()
    return sample, file(folder / "x.toml", Experiment.load), ExperimentError


def levers(folder: Path) -> Case:
    return Levers(recompute=True, micro_batch=4).to_json().encode(), text(Levers.from_json), ModelError


def payload(folder: Path) -> Case:
    return encode(STATE), decode, PayloadError


def model_file(folder: Path) -> Case:
    spec = spec_of(1.0)
    state = initial_state(MODEL, 0)
    made = ModelFile(MODEL, "width", {}, 1, state, {spec.label: spec}, {spec.label: state}, {}, spec.label)
    return made.to_bytes(), file(folder / "x.safetensors", ModelFile.read), ModelFileError


def snapshot(folder: Path) -> Case:
    path = folder / "x.checkpoint"
    trust = {"alarms": 0, "prepared": None, "norms": []}
    Snapshot(STATE, {}, {}, {"a": [1]}, trust, [], {}, {"b": 1}).write(path, "label")
    return path.read_bytes(), file(path, lambda path: Snapshot.read(path, lambda label: None)), SnapshotError


def journal(folder: Path) -> Case:
    rows = {"spec": spec_of(0.5).to_json(), "levers": "", "profile": json.dumps(asdict(Profile("t", 8)))}
    planner = json.dumps({"memory": {}, "began": 1.0})
    report = json.dumps(asdict(Report(8, 0.5, 1.0)))
    sample = "\n".join([*rows.values(), planner, report]).encode()

    def read(found: str) -> object:
        spec, levers, profile, planner, report = (found.split("\n") + 5 * [""])[:5]
        store = MemoryStore()
        store.open_round("run", 1, planner, [Assigned(name, spec, levers, profile) for name in ("one", "two")])
        objects = folder / "objects"
        objects.mkdir(exist_ok=True)
        (objects / "abc").write_bytes(b"123")
        accepted = Settled("one", Outcome.ACCEPTED, sha256="abc", size=3, report=report)
        store.settle("run", 1, [accepted])
        return Journal(store, "run", objects, 0)

    return sample, text(read), server.StoreError


def attendance(folder: Path) -> Case:
    def read(found: str) -> object:
        store = MemoryStore()
        store.meet("place", "one", Present(found))
        return Attendance(store, "place").there()

    return json.dumps(asdict(Profile("t", 8))).encode(), text(read), server.StoreError


def hello(folder: Path) -> Case:
    sample = pb.HelloReply(runs=[pb.OfferedRun(run_id="run", model_json=MODEL.to_json())], keeps=True, version="1")
    return sample.SerializeToString(), lambda data: Offered().read(pb.HelloReply.FromString(data)), TOLD


def task(folder: Path) -> Case:
    draws = Examples(torch.randn(6, *MODEL.input_shape), torch.arange(6) % 3)
    size, texts = len(encode(initial_state(MODEL, 0))), (spec_of(1.0).to_json(), TrainConfig().to_json())
    coding = {"codec": "exact", "progress": 0.5, "model": common_pb2.ObjectRef(sha256="0" * 64, size=size)}
    sample = pb.TrainTask(task_id="r1-one", round=1, spec_json=texts[0], training_json=texts[1], seed=1, **coding)

    def read(data: bytes) -> object:
        return read_offer(pb.TrainTask.FromString(data), "one", MODEL, draws, 1 << 20)

    return sample.SerializeToString(), read, TOLD


def announced(folder: Path) -> Case:
    known = Profile("small", 8, memory=9, macs_per_second=1e9, codecs=("exact",), class_counts=(3, 5))

    def read(data: bytes) -> object:
        return json.dumps(Profile.from_message(common_pb2.DeviceProfile.FromString(data)).as_dict(), allow_nan=False)

    return known.message("1").SerializeToString(), read, DecodeError


def piece(folder: Path) -> Case:
    return write_part(memoryview(b"123456")), read_part, DecodeError


def submitted(folder: Path) -> Case:
    sample = {
        "method": "width",
        "data": {"proxy": 40},
        "rounds": {"count": 1},
        "tiers": {"all": {"devices": 1, "width": 0.5}},
    }
    return json.dumps(sample).encode(), text(made), DiastoleError


def admin_file(folder: Path) -> Case:
    sample = (
        Identity("operator:one", Authority(folder / "ca").certificate.decode(), "certificate", "key").text().encode()
    )
    return sample, file(folder / "admin.token", _in_file), RefusedError


def operators_certificate(folder: Path) -> Case:
    made = Authority(folder / "ca").issue("operator:one")

    def read(data: str) -> object:
        return renewed("192.0.2.1:1", replace(made, certificate=data), None)

    return made.certificate.encode(), text(read), RefusedError


def database(folder: Path) -> Case:
    path = folder / "x.sqlite"
    SqlStore(f"sqlite:///{path}").close()

    def read(path: Path) -> None:
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        store = SqlStore(f"sqlite:///{path}")
        try:
            store.runs("place")
        finally:
            store.close()

    return path.read_bytes(), file(path, read), server.StoreError


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example that fails is small enough as it is."""
LIGHT = (
    *(address, token, signing_request, identity, enrolled_devices, authority_key),
    *(experiment, levers, payload, model_file, snapshot, journal, attendance),
    *(hello, task, announced, piece, submitted, admin_file, operators_certificate),
)
WORDS = (b"", b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"', b"\n", b"\x00", b"9" * 40, b"[" * 5000, b"../")


@st.composite
def edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Any bytes in the place of a sample; or a sample with some bytes replaced, cut out or put in, or cut short."""
    if draw(st.integers(0, 4)) == 0:
        other = draw(st.binary(max_size=200))
        return lambda sample: other
    part = st.tuples(st.floats(0, 1), st.integers(0, 8), st.one_of(st.binary(max_size=8), st.sampled_from(WORDS)))
    parts, keep = draw(st.lists(part, min_size=1, max_size=4)), draw(st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.3]))

    def edit(sample: bytes) -> bytes:
        data = bytearray(sample)
        for at, cut, put in parts:
            place = round(at * len(data))
            data[place : place + cut] = put
        return bytes(data[: round(keep * len(data))])

    return edit


def try_all(make: Callable[[Path], Case], folder: Path, examples: int) -> None:
    sample, read, errors = make(folder)
    read(sample)

    @given(edits())
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
    def one(edit: Callable[[bytes], bytes]) -> None:
        try:
            read(edit(sample))
        except errors as refused:
            said.add(str(refused))

    said: set[str] = set()
    one()
    assert not [text for text in said if "\n" in text or len(text) > LONGEST_LINE]


@pytest.mark.parametrize("make", LIGHT, ids=lambda make: make.__name__)
def test_what_is_garbled_is_read_or_refused_with_its_error(make: Callable[[Path], Case], tmp_path: Path) -> None:
    try_all(make, tmp_path, 12)


@pytest.mark.slow
@pytest.mark.parametrize("make", [*LIGHT, database], ids=lambda make: make.__name__)
def test_much_that_is_garbled_is_read_or_refused_with_its_error(make: Callable[[Path], Case], tmp_path: Path) -> None:
    try_all(make, tmp_path, 300)


@pytest.mark.parametrize("make", [payload, model_file, snapshot], ids=lambda make: make.__name__)
@pytest.mark.parametrize("claim", [8, 1 << 20, 100 << 30, (1 << 64) - 1])
def test_a_header_that_claims_gigabytes_takes_none(make: Callable[[Path], Case], claim: int, tmp_path: Path) -> None:
    sample, read, errors = make(tmp_path)
    header = {"w": {"dtype": "F32", "shape": [claim], "data_offsets": [0, 4 * claim]}}
    written = json.dumps(header).encode()
    lies = (
        struct.pack("<Q", claim) + sample[8:],
        struct.pack("<Q", len(written)) + written + b"1234",
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for lie in lies:
        with pytest.raises(errors):
            read(lie)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB
