"""The gRPC service by which operators say who may take part; proto/diastole/v1/admin.proto is its contract."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from diastole.proto.errors import DiastoleError
from diastole.proto.identity import OPERATOR
from diastole.proto.words import Reason, plain
from diastole.server.errors import StoreError
from diastole.server.labels import MOST_LABELS, wrong
from diastole.server.security.audit import Audit
from diastole.server.security.operators import operator_of
from diastole.server.store.decisions import Decisions
from diastole.server.store.labels import Labels
from diastole.server.wire.device_service import NAME
from diastole.server.wire.identity import digest
from diastole.server.wire.refusal import LONGEST_MESSAGE, refuse_operator
from diastole.v1 import admin_pb2 as pb
from diastole.v1 import admin_pb2_grpc, device_pb2

if TYPE_CHECKING:
    from diastole.server.security.enrollment import Enrollment

LONGEST_OPERATOR = 40
"""Characters; a certificate's common name has 64 at most."""
LINES, MOST_LINES = 100, 1000


class AccessService(admin_pb2_grpc.AccessServiceServicer):
    """Invites, revokes and renews who may call, suspends and releases devices, and reads the audit."""

    def __init__(
        self,
        audit: Audit,
        enrollment: "Enrollment | None",
        decisions: Decisions,
        dismiss: Callable[[str, str], None] = lambda name, why: None,
        labels: Labels | None = None,
    ) -> None:
        """Serve what is in `audit` and `enrollment`, which is None for a coordinator that enrolls nobody.

        `decisions` suspends and releases devices; `dismiss(name, reason)` ends a device's session; `labels`
        are the devices'.
        """
        self._labels = labels
        self._audit, self._enrollment, self._decisions, self._dismiss = audit, enrollment, decisions, dismiss

    def Invite(self, request: pb.InviteRequest, context: grpc.ServicerContext) -> pb.InviteReply:  # noqa: N802
        """Make a token for a device or an operator."""
        enrollment = self._enrolling(context)
        _check_name(request.name, context, operator=request.operator)
        try:
            token = enrollment.invite(OPERATOR * request.operator + request.name, request.seconds)
        except OSError as error:
            refuse_operator(
                context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, f"no token can be kept: {error.strerror}"
            )
        return pb.InviteReply(token=token)

    def Revoke(self, request: pb.RevokeRequest, context: grpc.ServicerContext) -> pb.RevokeReply:  # noqa: N802
        """Shut a device or an operator out."""
        enrollment = self._enrolling(context)
        try:
            known = enrollment.revoke(OPERATOR * request.operator + request.name)
        except OSError as error:
            text = f"the revocation cannot be kept, and does not count: {error.strerror}"
            refuse_operator(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, text)
        if known and not request.operator:
            self._dismiss(request.name, "revoked by the operator")
        return pb.RevokeReply(known=known)

    def Suspend(self, request: pb.SuspendRequest, context: grpc.ServicerContext) -> pb.SuspendReply:  # noqa: N802
        """Keep a device out."""
        _check_name(request.name, context)
        try:
            self._decisions.suspend(request.name, plain(request.reason) or "by the operator")
        except StoreError as error:
            refuse_operator(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, str(error))
        return pb.SuspendReply()

    def Release(self, request: pb.ReleaseRequest, context: grpc.ServicerContext) -> pb.ReleaseReply:  # noqa: N802
        """Let a device back in."""
        try:
            return pb.ReleaseReply(known=self._decisions.release(request.name))
        except StoreError as error:
            refuse_operator(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, str(error))

    def Label(self, request: pb.LabelRequest, context: grpc.ServicerContext) -> pb.LabelReply:  # noqa: N802
        """Give a device labels, or take them away."""
        _check_name(request.name, context)
        if text := wrong(request.set):
            refuse_operator(context, grpc.StatusCode.INVALID_ARGUMENT, Reason.LABEL, plain(text, LONGEST_MESSAGE))
        try:
            labels = self._labels.change(request.name, request.set, request.remove) if self._labels else {}
        except StoreError as error:
            refuse_operator(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, str(error))
        if len(labels) > MOST_LABELS:
            text = f"{len(labels)} labels; {MOST_LABELS} at most are accepted"
            refuse_operator(context, grpc.StatusCode.INVALID_ARGUMENT, Reason.LABEL, text)
        return pb.LabelReply(labels=labels)

    def ListAudit(self, request: pb.ListAuditRequest, context: grpc.ServicerContext) -> pb.ListAuditReply:  # noqa: N802
        """Return the last lines of the audit."""
        try:
            lines = self._audit.last(min(request.most or LINES, MOST_LINES))
        except StoreError as error:
            refuse_operator(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, str(error))
        reply = pb.ListAuditReply()
        for line in lines:
            reply.lines.add(at=line.at, who=line.who, call=line.call, detail=line.detail, outcome=line.outcome)
        return reply

    def Renew(self, request: device_pb2.RenewRequest, context: grpc.ServicerContext) -> device_pb2.RenewReply:  # noqa: N802
        """Certify an operator anew."""
        enrollment = self._enrolling(context)
        shown: Any = context.auth_context()
        pem = next(iter(shown.get("x509_pem_cert", ())), None)
        if pem is None:
            text = "this call shows no certificate that could be renewed"
            refuse_operator(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.NO_ENROLLMENT, text)
        if request.name != operator_of(shown):
            text = f"the certificate is of {operator_of(shown)!r}, and only that is renewed"
            refuse_operator(context, grpc.StatusCode.PERMISSION_DENIED, Reason.OPERATOR_CERTIFICATE, text)
        try:
            certificate = enrollment.renew(request.name, request.signing_request, digest(pem))
        except DiastoleError as error:
            refuse_operator(context, grpc.StatusCode.INVALID_ARGUMENT, Reason.SIGNING_REQUEST, str(error))
        except OSError as error:
            text = f"no certificate can be noted now: {error.strerror}"
            refuse_operator(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, text)
        return device_pb2.RenewReply(certificate=certificate)

    def _enrolling(self, context: grpc.ServicerContext) -> "Enrollment":
        if self._enrollment is None:
            text = "this coordinator enrolls nobody; diastole serve --enroll HOST:PORT lets it"
            refuse_operator(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.NO_ENROLLMENT, text)
        return self._enrollment


def _check_name(name: str, context: grpc.ServicerContext, *, operator: bool = False) -> None:
    if not NAME.fullmatch(name) or (operator and len(name) > LONGEST_OPERATOR):
        kind, most = ("operator", LONGEST_OPERATOR) if operator else ("device", 64)
        text = f"{kind} name {name!r}; use 1 to {most} characters of A-Z a-z 0-9 . _ -"
        refuse_operator(context, grpc.StatusCode.INVALID_ARGUMENT, Reason.DEVICE_NAME, text)
