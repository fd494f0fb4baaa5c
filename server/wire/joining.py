"""Whether a device may join, and in which runs it takes part."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version

import grpc

from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION, Reason
from diastole.server.errors import TierError
from diastole.server.wire.board import Board, RunOffer
from diastole.server.wire.refusal import Context, refuse
from diastole.v1 import device_pb2 as pb

LONGEST_LABEL = 64
NOTHING = "nothing is trained here now"
VERSION = version("diastole")


async def check_version(spoken: list[int], context: Context) -> None:
    """Refuse a device that does not speak this protocol."""
    if PROTOCOL_VERSION not in spoken:
        text = (
            f"the agent speaks protocol {', '.join(map(str, spoken[:8])) or 'nothing'}, this coordinator, diastole "
            f"{VERSION}, speaks {PROTOCOL_VERSION}; install the same version of diastole on both"
        )
        await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.PROTOCOL_VERSION, text)


async def runs_of(request: pb.JoinRequest, board: Board, context: Context) -> Mapping[str, Profile]:
    """Return the runs that a device serves, and its profile in each, with its tier there; or refuse it."""
    labels = (request.profile.tier, request.profile.agent_version)
    if max(map(len, labels)) > LONGEST_LABEL or not all(map(str.isprintable, labels)):
        text = f"tier and version must be at most {LONGEST_LABEL} printable characters"
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, Reason.DEVICE_PROFILE, text)
    wanted = await _wanted(request, board, context)
    profile, serves, refused = Profile.from_message(request.profile), dict[str, Profile](), list[str]()
    for offer in wanted:
        try:
            tier = offer.tiers.place(request.name, profile.tier) if offer.tiers else profile.tier
            serves[offer.run_id] = replace(profile, tier=tier)
        except TierError as error:
            refused.append(str(error))
    if refused and not serves:
        await refuse(context, grpc.StatusCode.PERMISSION_DENIED, Reason.DEVICE_TIER, refused[0])
    return serves


async def _wanted(request: pb.JoinRequest, board: Board, context: Context) -> list[RunOffer]:
    """Return the runs that a device says it can serve, or refuse it."""
    if not request.runs and not (board.keeps and not request.model_schema):
        first = next(iter(board.offers.values()), None)
        if first is None:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STARTING, NOTHING)
        await _check_schema(request, request.model_schema, first, context)
        return [each for each in board.offers.values() if each.model_json == first.model_json]
    wanted = list[RunOffer]()
    for served in request.runs:
        offer = board.offers.get(served.run_id)
        if offer is not None:
            await _check_schema(request, served.model_schema, offer, context)
            wanted.append(offer)
    if request.runs and not wanted:
        text = "the runs that this device would serve are over; there are others"
        await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STARTING, text)
    return wanted


async def _check_schema(request: pb.JoinRequest, schema: str, offer: RunOffer, context: Context) -> None:
    if schema != offer.schema:
        await refuse(
            context,
            grpc.StatusCode.FAILED_PRECONDITION,
            Reason.MODEL_SCHEMA,
            f"the agent builds a model with schema {schema[:12] or '(none)'}..., the coordinator one with "
            f"{offer.schema[:12]}...; install the same version of diastole on both: the agent has "
            f"{request.profile.agent_version or 'an unknown one'}, the coordinator {VERSION}",
        )
