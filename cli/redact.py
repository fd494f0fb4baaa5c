"""Texts without what lets anybody in."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

GONE = "(removed)"
FILES = ("admin.token", "view.token", "web.token", "key", "ca/ca.key")
"""Files of state folders whose content is secret."""
PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), GONE),
    # Tokens of invitations (proto/invitation.py).
    (re.compile(r"\bdiastole-[A-Za-z0-9_-]{40,}"), GONE),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {GONE}"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^/\s:@]*):[^@\s/]+@"), rf"\1:{GONE}@"),
)
WORDS = r"(?:token|secret|password|passwd|api_?key|private_?key|credential|authorization|headers)"
NAMES = re.compile(WORDS, re.IGNORECASE)
"""Names whose values are secret."""
ASSIGNED = re.compile(rf"^(\s*[\w.\"'-]*{WORDS}[\w.\"'-]*\s*[=:]\s*)\S.*$", re.IGNORECASE | re.MULTILINE)
SHORTEST = 8
"""Of a text that is taken for a secret wherever it stands."""


class Redactor:
    """Removes secrets: those that are known, and what looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted({each for each in secrets if len(each) >= SHORTEST}, key=len, reverse=True)

    @classmethod
    def of(cls, *folders: Path) -> "Redactor":
        """Return one that knows the secrets in state folders, of coordinators and of agents."""
        found = list[str]()
        for folder in folders:
            for path in (*(folder / name for name in FILES), *folder.glob("identity/*.json")):
                try:
                    text = path.read_text(encoding="utf-8", errors="replace").strip()
                except OSError:
                    continue
                found += [text, *re.findall(r"[A-Za-z0-9+/=_-]{24,}", text)]
        return cls(found)

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, GONE)
        for pattern, instead in PATTERNS:
            text = pattern.sub(instead, text)
        return ASSIGNED.sub(rf"\1{GONE}", text)

    def document(self, document: Any) -> Any:
        """Return a JSON document without secrets."""
        if isinstance(document, Mapping):
            return {
                key: GONE if isinstance(value, str) and NAMES.search(str(key)) else self.document(value)
                for key, value in document.items()
            }
        if isinstance(document, list | tuple):
            return [self.document(value) for value in document]
        return self.text(document) if isinstance(document, str) else document
