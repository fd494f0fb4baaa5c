"""A coordinator that is its own authority: who gets a certificate, and what it is good for."""

import queue
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from agents import MODEL, serve, states, task
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from diastole.client.connection import Connection
from diastole.client.enrolling import Enrolled, enroll
from diastole.client.errors import FolderError, LinkError, RefusedError
from diastole.client.identities import Identities
from diastole.proto import identity as identity_
from diastole.proto.errors import DiastoleError
from diastole.proto.identity import Identity
from diastole.proto.invitation import SERVER_NAME, Token, TokenError
from diastole.proto.profile import Profile
from diastole.proto.words import Reason
from diastole.server.events import DeviceJoined, DeviceLeft, DevicesMoved
from diastole.server.security.authority import LIFETIME, RequestError
from diastole.server.security.enroll_service import EnrollServer
from diastole.server.security.enrollment import MOST_SECONDS, Enrollment, SecretError
from diastole.server.wire.device_service import NAME
from diastole.server.wire.identity import Gate, StrangerError, digest
from diastole.server.wire.link import GrpcLink

HERE = "127.0.0.1:0"
Line = tuple[str, str, str, str]


class Place:
    """A coordinator that enrolls devices, and what it has noted."""

    def __init__(self, folder: Path, lifetime: timedelta = LIFETIME) -> None:
        self.folder, self.lines, self.renewals = folder, list[Line](), queue.SimpleQueue[str]()
        self.enrollment = Enrollment(folder, lifetime=lifetime)
        self.server = EnrollServer(HERE, self.enrollment, self.note)
        gate = Gate(self.enrollment.listed, self.renew)
        self.link: GrpcLink = serve(credentials=self.enrollment.authority.credentials(mutual=True), gate=gate)
        self.address = f"127.0.0.1:{self.link.port}"

    def note(self, *line: str, stranger: bool = False) -> None:
        self.lines.append(line)

    def renew(self, name: str, request: bytes, shown: str) -> bytes:
        certificate = self.enrollment.renew(name, request, shown)
        self.renewals.put(name)
        return certificate

    def enroll(self, state: Path, name: str) -> Identity:
        state.mkdir(exist_ok=True)
        return enroll(state, self.address, Token.parse(self.enrollment.invite(name)))

    def connect(self, identity: Identity, name: str = "", state: Path = Path("unused")) -> Connection:
        known, me = Enrolled(state, self.address, identity), Profile("test", 8)
        return Connection(self.address, name or identity.name, me, patience=10, enrolled=known)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("coordinator") / "ca")
    with closing(made.server), closing(made.link):
        yield made


@contextmanager
def closed(connection: Connection) -> Iterator[Connection]:
    try:
        yield connection
    finally:
        connection.close("the test is over")


def request(key: object = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


def test_an_enrolled_device_joins_under_its_name_and_no_other(place: Place, tmp_path: Path) -> None:
    identity = place.enroll(tmp_path, "one")
    assert Identities(tmp_path).at(place.address) == identity
    with closed(place.connect(identity)) as connection:
        assert connection.join() == MODEL
    with closed(place.connect(identity, "two")) as connection, pytest.raises(RefusedError) as caught:
        connection.join()
    assert caught.value.reason == Reason.DEVICE_CERTIFICATE
    assert place.lines[-1][1:] == ("Enroll", "one", "enrolled")


def test_an_identity_is_a_coordinators_wherever_it_is_called(place: Place, tmp_path: Path) -> None:
    identity, known, name = place.enroll(tmp_path, "mover"), Identities(tmp_path), f"localhost:{place.link.port}"
    assert known.at(name) == identity
    with closing(serve()) as plain, closing(EnrollServer(HERE, Enrollment(tmp_path / "ca"), place.note)) as other:
        assert known.at(f"127.0.0.1:{plain.port}") is None
        assert known.at(f"127.0.0.1:{other.port}") is None
        # Nobody answers: the only identity, but on loopback, where plain text is the rule.
        assert known.at("coordinator.invalid:7700") == identity
        # An address leads to whoever was enrolled with there last.
        moved = replace(identity, ca=Enrollment(tmp_path / "ca").authority.certificate.decode())
        known.keep(moved, name)
        assert known.at(name) == moved
        assert known.at(place.address) == identity
        assert known.at("coordinator.invalid:7700") is None


def test_what_a_device_or_a_coordinator_must_keep_secret_is_for_its_user_alone(place: Place, tmp_path: Path) -> None:
    place.enroll(tmp_path, "secret")
    files = [*place.folder.iterdir(), *(path for path in tmp_path.rglob("*") if path.is_file())]
    kept = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files if path.name != "ca.pem"}
    assert {"ca.key", "devices.json"} < set(kept)
    assert set(kept.values()) == {0o600}
    assert stat.S_IMODE(place.folder.stat().st_mode) == stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700


def test_a_certificate_is_renewed_by_its_owner_alone_and_the_one_before_still_counts(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place.enroll(tmp_path, "lasting")
    keeper = Enrolled(tmp_path, place.address, first)
    with closed(place.connect(first)) as connection:
        assert connection.join() == MODEL
        assert not keeper.renew(connection._line.stub)
        monkeypatch.setattr(identity_, "RENEWED_AFTER", timedelta(0))
        keeper = Enrolled(tmp_path, place.address, first)
        assert (keeper.pause(), keeper.renew(connection._line.stub)) == (0, True)
        second = keeper.identity
        assert second.key != first.key
        assert Identities(tmp_path).at(place.address) == second
        place.enroll(tmp_path / "other", "other")
        thief = Enrolled(tmp_path / "other", place.address, replace(second, name="other"))
        assert not thief.renew(connection._line.stub)
        assert thief.pause() > 0
    assert place.renewals.get(timeout=0) == "lasting"
    monkeypatch.undo()
    for identity in (first, second):
        with closed(place.connect(identity)) as connection:
            assert connection.join() == MODEL


def test_an_agent_outlives_its_certificates_without_a_gap(tmp_path: Path) -> None:
    place, left = Place(tmp_path / "ca", timedelta(seconds=2)), 2
    with closing(place.server), closing(place.link):
        first = place.enroll(tmp_path / "agent", "long")
        events: queue.SimpleQueue[object] = queue.SimpleQueue()
        place.link.observe(events.put)
        with closed(place.connect(first, state=tmp_path / "agent")) as connection:
            connection.join()
            assert place.link.wait(1, 60)
            while left or not ended(first):
                with suppress(queue.Empty):
                    assert place.renewals.get(timeout=0.02) == "long"
                    left = max(left - 1, 0)
                assert place.link.devices().keys() == {"long"}
            assert not place.enrollment.listed("long", digest(first.certificate.encode()))
            with pytest.raises(LinkError, match="the certificate of 'long' has ended"):
                Enrolled(tmp_path / "agent", place.address, first)
            late = threading.Thread(target=lambda: list(place.link.dispatch([task(1, "long")], states(), 30)))
            late.start()
            assert next(connection.tasks()).task.task_id == "r1-long"
            assert place.enrollment.revoke("long")
            with pytest.raises(RefusedError) as caught:
                connection.settled("r1-long")
            assert caught.value.reason == Reason.DEVICE_REVOKED
            place.link.hub.dismiss("long", "revoked")
            late.join(20)
        # Where the task stands is told now and then, and so perhaps between the two.
        told = iter(lambda: events.get(timeout=10), None)
        presence = (event for event in told if not isinstance(event, DevicesMoved))
        assert next(presence) == DeviceJoined("long", "test", 8)
        assert next(presence) == DeviceLeft("long", "revoked")


def ended(identity: Identity) -> bool:
    return x509.load_pem_x509_certificate(identity.certificate.encode()).not_valid_after_utc < datetime.now(UTC)


def test_a_token_counts_once(place: Place, tmp_path: Path) -> None:
    token = Token.parse(place.enrollment.invite("once"))
    enroll(tmp_path, place.address, token)
    with pytest.raises(RefusedError, match="this token is unknown, used or too old") as caught:
        enroll(tmp_path, place.address, token)
    assert caught.value.reason == Reason.TOKEN
    assert token.secret not in (place.folder / "devices.json").read_text()


def test_a_token_is_not_sent_to_another_coordinator(place: Place, tmp_path: Path) -> None:
    other = Enrollment(tmp_path / "ca")
    token = replace(Token.parse(place.enrollment.invite("astray")), ca=other.authority.certificate.decode())
    with pytest.raises(LinkError, match="cannot enroll at 127"):
        enroll(tmp_path, place.address, token)
    assert place.enrollment.enroll(token.secret, request())[0] == "astray"


def test_a_folder_that_keeps_nothing_costs_no_token(place: Place, tmp_path: Path) -> None:
    token = Token.parse(place.enrollment.invite("full"))
    with pytest.raises(FolderError):
        enroll(tmp_path / "not" / "there", place.address, token)
    assert place.enrollment.enroll(token.secret, request())[0] == "full"


def test_a_device_without_a_certificate_of_this_authority_is_not_heard(place: Place, tmp_path: Path) -> None:
    other = Enrollment(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, *form).decode()
    forged = other.authority.certify("one", request(key)).decode()
    identity = Identity("one", place.enrollment.authority.certificate.decode(), forged, pem)
    trusting = grpc.ssl_channel_credentials(place.enrollment.authority.certificate)
    anonymous = Enrolled(tmp_path, place.address, identity)
    anonymous.identity = SimpleNamespace(name="one", credentials=lambda: trusting)
    for who in (Enrolled(tmp_path, place.address, identity), anonymous):
        stranger = Connection(place.address, "one", Profile("test", 8), patience=0.5, enrolled=who)
        with closed(stranger), pytest.raises(LinkError):
            stranger.join()


def test_a_revoked_device_loses_its_stream_and_does_not_come_back(place: Place, tmp_path: Path) -> None:
    identity = place.enroll(tmp_path, "gone")
    with closed(place.connect(identity)) as connection:
        connection.join()
        while "gone" not in place.link.devices():
            assert place.link.wait(1, 60)
        assert place.enrollment.revoke("gone")
        place.link.hub.dismiss("gone", "revoked")
        with pytest.raises(RefusedError) as caught:
            next(connection.tasks())
        assert caught.value.reason == Reason.DEVICE_REVOKED
        with pytest.raises(RefusedError) as caught:
            connection.rejoin()
        assert caught.value.reason == Reason.DEVICE_REVOKED
    assert not place.enrollment.revoke("gone")


def test_a_coordinator_that_is_started_again_knows_its_devices_and_its_invitations(tmp_path: Path) -> None:
    before = Enrollment(tmp_path)
    before.port = 1
    secret = Token.parse(before.invite("two")).secret
    first = Token.parse(before.invite("one")).secret
    _, certificate = before.enroll(first, request())
    after = Enrollment(tmp_path)
    assert after.authority.certificate == before.authority.certificate
    gate, shown = Gate(after.listed), {"x509_pem_cert": [certificate], "x509_common_name": [b"one"]}
    assert gate.check("one", shown)
    assert after.enroll(secret, request())[0] == "two"


def test_a_renewed_certificate_leaves_the_one_before_in_place_and_enrolling_anew_does_not(tmp_path: Path) -> None:
    enrollment = Enrollment(tmp_path)
    enrollment.port = 1

    def counts(certificate: bytes) -> bool:
        shown = {"x509_pem_cert": [certificate], "x509_common_name": [b"one"]}
        try:
            return Gate(enrollment.listed).check("one", shown)
        except StrangerError:
            return False

    certificates = [enrollment.enroll(Token.parse(enrollment.invite("one")).secret, request())[1]]
    for _ in range(2):
        certificates.append(enrollment.renew("one", request(), digest(certificates[-1])))
    enrollment.renew("one", request(), digest(certificates[1]))
    certificates.append(enrollment.renew("one", request(), digest(certificates[1])))
    assert [counts(each) for each in certificates] == [False, True, False, True]
    certificates.append(enrollment.enroll(Token.parse(enrollment.invite("one")).secret, request())[1])
    assert [counts(each) for each in certificates] == [False, False, False, False, True]
    with pytest.raises(SecretError):
        enrollment.renew("one", request(), digest(certificates[1]))


def test_a_token_ends_with_its_time_and_with_the_next_one(tmp_path: Path) -> None:
    now = 0.0
    enrollment = Enrollment(tmp_path, lambda: now)
    enrollment.port = 1
    for seconds, until in ((0.0, 3600.0), (5.0, 5.0), (1e300, MOST_SECONDS), (float("nan"), 3600.0)):
        now = 0.0
        early, late = (Token.parse(enrollment.invite("one", seconds)).secret for _ in range(2))
        with pytest.raises(SecretError):
            enrollment.enroll(early, request())
        now = until + 1
        with pytest.raises(SecretError):
            enrollment.enroll(late, request())
        now = 0.0
        secret = Token.parse(enrollment.invite("one", seconds)).secret
        now = until - 1
        assert enrollment.enroll(secret, request())[0] == "one"


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\x30\x82\xff\xff",
        request(rsa.generate_private_key(65537, 2048)),
        request(ec.generate_private_key(ec.SECP384R1())),
        request()[:-1] + b"\x00",
    ],
)
def test_a_request_that_is_none_costs_no_token(place: Place, wrong: bytes) -> None:
    secret = Token.parse(place.enrollment.invite("wrong")).secret
    with pytest.raises(RequestError):
        place.enrollment.enroll(secret, wrong)
    assert place.enrollment.enroll(secret, request())[0] == "wrong"


def test_no_device_can_have_the_name_in_the_coordinators_certificate() -> None:
    assert not NAME.fullmatch(SERVER_NAME)


@pytest.mark.parametrize(
    "text", ["", "x", "diastole-", "diastole-!!!", "diastole-e30", "diastole-bnVsbA", "diastole-W10"]
)
def test_a_text_that_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(TokenError, match="this is not a token"):
        Token.parse(text)


def test_a_damaged_identity_or_authority_is_named(place: Place, tmp_path: Path) -> None:
    place.enroll(tmp_path, "damaged")
    (path,) = (tmp_path / "identity").glob("*.json")
    path.write_text("{")
    with pytest.raises(FolderError, match="no identity can be read"):
        Identities(tmp_path).at(place.address)
    Enrollment(tmp_path / "ca")
    (tmp_path / "ca" / "ca.key").write_text("nothing")
    with pytest.raises(DiastoleError, match="no authority"):
        Enrollment(tmp_path / "ca")
