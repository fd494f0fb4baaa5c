"""The dashboard of a coordinator: off loopback over TLS, for operators' certificates and for tokens."""

import ssl
from pathlib import Path

import httpx
import pytest
from onedevice import HERE, serve

from diastole.experiments import web
from diastole.experiments.errors import NothingLearnedError
from diastole.proto.identity import Identity
from diastole.server.errors import AddressError
from diastole.server.security.authority import Authority
from diastole.server.web import libraries
from diastole.server.web.config import WebConfig

OWN = {"x-diastole": "1"}


def client(state: Path, port: int | None, identity: Identity | None = None) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(state / "ca" / "ca.pem"))
    if identity is not None:
        pair = state / "pair.pem"
        pair.write_text(f"{identity.key}\n{identity.certificate}")
        context.load_cert_chain(pair)
    return httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False)


def test_off_loopback_operators_show_certificates_or_tokens(tmp_path: Path) -> None:
    state = tmp_path / "state"
    options = {"admin": "0.0.0.0:0", "enroll": HERE}
    with serve(state, web=WebConfig("0.0.0.0:0"), **options) as serving:
        operator = Identity.parse((state / "admin.token").read_text())
        with client(state, serving.web_port) as caller:
            assert caller.get("/api/session").json()["role"] == ""
            answer = caller.post("/api/login", json={"token": (state / web.WEB_TOKEN).read_text()}, headers=OWN)
            assert answer.json()["role"] == "operator"
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-")
            assert "secure" in cookie.lower()
            assert (state / web.WEB_TOKEN).stat().st_mode & 0o077 == 0
        stranger = Authority(state / "ca").issue("operator:mallory")
        for identity, role in ((stranger, ""), (operator, "operator")):
            with client(state, serving.web_port, identity) as caller:
                assert caller.get("/api/session").json()["role"] == role
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{serving.web_port}/", trust_env=False)
        with client(state, serving.web_port, operator) as caller:
            assert caller.post(f"/api/runs/{serving.run_id}/stop", headers=OWN).status_code == 200
        with pytest.raises(NothingLearnedError):
            serving.wait(60)


def test_on_loopback_the_token_of_the_admin_service_logs_in(tmp_path: Path) -> None:
    with serve(tmp_path, web=WebConfig(HERE), admin=HERE) as serving:
        assert serving.web is not None
        url = serving.web.url(serving.web_port or 0)
        for name, role in (("view.token", "reader"), ("admin.token", "operator")):
            bearer = {"authorization": f"Bearer {(tmp_path / name).read_text().strip()}"}
            with httpx.Client(base_url=url, headers=bearer, trust_env=False, verify=False) as caller:
                assert caller.get("/api/session").json()["role"] == role
                stored = caller.get("/api/storage").json()["stored"]
                assert stored["parts"]["coordinator.sqlite"] > 0
                stopped = caller.post(f"/api/runs/{serving.run_id}/stop-now", headers=OWN)
                assert stopped.status_code == (403 if role == "reader" else 200)
        with pytest.raises(NothingLearnedError):
            serving.wait(60)


def test_what_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AddressError, match="in plain text; a loopback address is accepted"):
        serve(tmp_path / "one", web=WebConfig("0.0.0.0:0"))
    with pytest.raises(AddressError, match="PEM is accepted"):
        serve(tmp_path / "two", web=WebConfig("0.0.0.0:0", pair=(b"no certificate", b"no key")))
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(AddressError, match=r"pip install 'diastole\[dashboard\]'"):
        serve(tmp_path / "three", web=WebConfig(HERE))
