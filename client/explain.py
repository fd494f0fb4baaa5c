"""What an agent would send, and what stays on the device, in plain words."""

from collections.abc import Iterable, Mapping
from typing import Any

from diastole.client.terms import Terms
from diastole.v1.common_pb2 import DeviceProfile

HIDDEN = (
    "session",
    "sha256",
    "offset",
    "task_id",
    "run_id",
    "protocol_version",
    "protocol_versions",
    "model_schema",
    "data",
    "key",
    "signing_request",
    "lease_seconds",
)
"""Fields of requests that say nothing of the device: leases, and what tells calls, tasks, bytes and agents apart."""

PROFILE: Mapping[str, str] = {
    "tier": "the tier that it asks for",
    "memory_bytes": "the bytes that it offers for training",
    "macs_per_second": "how fast it trains, multiply-accumulates a second",
    "bytes_per_second_down": "how fast it downloads, bytes a second",
    "bytes_per_second_up": "how fast it uploads, bytes a second",
    "cpu_cores": "its processor's cores",
    "examples": "how many examples it trains on",
    "agent_version": "the agent's version",
    "codecs": "the encodings that it knows",
    "speeds": "how fast it trains at each kind of work",
    "simd_block": "the width of its processor's vectors",
    "levers": "the ways to save memory that it knows",
    "class_counts": "how many examples it has of each class",
    "memory_free": "whether those bytes are what it has free",
}
"""What is told when the agent joins, by the fields of `DeviceProfile`."""

UPDATE: Mapping[str, str] = {
    "update": "the parameters of the sub-model that it has trained, encoded as the task asks",
    "examples": "how many examples it trained on",
    "loss": "the mean training loss of the last epoch",
    "train_seconds": "the seconds of training",
    "scores": "how the sub-model did on your test examples before and after training: two numbers, and their count",
}
"""What is told for each task, by the fields of `UploadHeader`."""

OTHER: Mapping[str, str] = {
    "name": "this device's name",
    "runs": "which of the coordinator's runs its examples fit",
    "why": "that it declines a task, and why, in a line",
    "message": "that it leaves, and why, in a line",
}
"""What other requests may say."""


def explain(address: str, name: str, message: DeviceProfile, terms: Terms, *, encrypted: bool) -> Iterable[str]:
    """Yield lines on what `diastole join` with these arguments would send, to whom, and what it would keep.

    Args:
        address: the coordinator, `host:port`.
        name: this device's.
        message: what it would announce.
        terms: on which it works.
        encrypted: whether over TLS.

    """
    kept = len(terms.kept())
    how = "encrypted (TLS)" if encrypted else "as plain text, which everybody on the way can read"
    yield f"Everything goes to {address}, {how}. Nothing has been sent now."
    yield "When it joins, and again whenever it joins anew, this device tells:"
    yield f"  {OTHER['name']}: {name}"
    for field, words in PROFILE.items():
        if field != "class_counts" or terms.share_classes:
            yield f"  {words}: {_shown(getattr(message, field))}"
    yield "For each task that it is given, it sends:"
    for field, words in UPDATE.items():
        if field != "scores" or (terms.share_scores and kept):
            yield f"  {words}"
    yield f"It may also say {OTHER['why']}, and {OTHER['message']}."
    counts = "" if terms.share_classes else ", how many there are of each class (--share-classes),"
    yield f"These never leave the device: examples and labels{counts} and gradients."
    yield (
        "Parameters that were trained on few examples can give some of them away, and whoever runs the coordinator "
        "sees each device's update."
    )
    if not terms.share_scores:
        yield "Scores on this device's own examples are not sent (--share-scores)."
    yield f"It keeps {kept} examples for a test of its own and trains on the other {message.examples}."
    if terms.folder is None:
        yield "It keeps no files."
    else:
        own = "" if terms.personal == "none" else f", and a model of its own (--personal {terms.personal})"
        where = terms.folder.path("model").parent
        yield f"In {where} it keeps what a restart needs, and the sub-model that it trained last{own}."


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value or "none"
    if isinstance(value, float):
        return f"{value:.3g}" if value else "unknown"
    if isinstance(value, int):
        return str(value) if value else "unknown"
    parts = [f"{each.kind} {each.per_second:.3g}" if hasattr(each, "kind") else str(each) for each in value]
    return ", ".join(parts) or "none"
