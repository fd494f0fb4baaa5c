"""What is written down of operators, and of strangers."""

from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from diastole.proto.identity import fingerprint
from diastole.server.security.audit import HOUR, STRANGERS, Audit
from diastole.server.security.enrollment import SecretError
from diastole.server.security.security import Security
from diastole.server.store.folder import StateFolder
from diastole.server.store.memory import MemoryStore


def test_strangers_do_not_push_operators_out_of_the_audit() -> None:
    now = 0.0
    audit = Audit("place", MemoryStore(), lambda: now)
    audit("operator:one", "Stop", "now=True", "done")
    for _ in range(3 * STRANGERS):
        audit("ipv4:192.0.2.1:9", "Stop", "", "no token", stranger=True)
    audit("operator:one", "Stop", "", "done")
    assert [line.who for line in audit.last(1000)].count("ipv4:192.0.2.1:9") == STRANGERS
    now = HOUR
    audit("ipv4:192.0.2.1:9", "Stop", "", "no token", stranger=True)
    assert [line.outcome for line in audit.last(3)] == [
        "no token",
        f"{2 * STRANGERS} more calls of strangers were refused",
        "done",
    ]


def test_what_strangers_say_is_one_short_line() -> None:
    audit = Audit("place", MemoryStore())
    audit("x" * 1000, "Stop", "a\nb\x1b" * 1000, "refused", stranger=True)
    (line,) = audit.last(1)
    assert max(len(line.who), len(line.detail)) <= 300
    assert line.detail.isprintable()


def test_renewals_are_in_the_audit_and_refused_ones_too(tmp_path: Path) -> None:
    key, empty = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    request = x509.CertificateSigningRequestBuilder().subject_name(empty).sign(key, hashes.SHA256())
    der, audit = request.public_bytes(serialization.Encoding.DER), Audit("place", MemoryStore())
    with closing(StateFolder(tmp_path / "state")) as folder:
        security = Security(folder, audit)
        shown = fingerprint(security.enrollment.issue("one").certificate)
        assert security.gate.renew is not None
        assert security.gate.renew("one", der, shown)
        with pytest.raises(SecretError):
            security.gate.renew("two", der, shown)
    assert [(line.who, line.call, line.outcome[:10]) for line in audit.last(10)] == [
        ("two", "Renew", "device 'tw"),
        ("one", "Renew", "done"),
    ]
