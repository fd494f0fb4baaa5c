import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.proto.coding import known
from diastole.proto.profile import MOST_CLASSES, MOST_KINDS, Profile
from diastole.v1 import common_pb2

counts = st.integers(1, 2**63)
speeds = st.floats(1e-6, 1e18)
profiles = st.builds(
    Profile,
    tier=st.text(),
    examples=st.integers(0, 2**63),
    memory=st.none() | counts,
    macs_per_second=st.none() | speeds,
    down=st.none() | speeds,
    up=st.none() | speeds,
    cores=st.integers(0, 2**31),
    codecs=st.lists(st.sampled_from(sorted(known())), unique=True).map(lambda names: tuple(sorted(names))),
    speeds=st.dictionaries(st.sampled_from(["dense", "calls", "new"]), speeds),
    simd_block=st.sampled_from([0, 4, 8, 16]),
    memory_free=st.booleans(),
)


@given(profiles)
@settings(deadline=None, max_examples=100)
def test_a_profile_survives_the_wire(profile: Profile) -> None:
    data = profile.message("1.2").SerializeToString()
    assert Profile.from_message(common_pb2.DeviceProfile.FromString(data)) == profile


def test_each_figure_goes_into_its_own_field() -> None:
    message = Profile(
        "small", 10, memory=2, macs_per_second=3.5, down=4.5, up=5.5, cores=6, speeds={"dense": 7.5}, simd_block=8
    ).message("0.1.0")
    assert message == common_pb2.DeviceProfile(
        tier="small",
        examples=10,
        memory_bytes=2,
        macs_per_second=3.5,
        bytes_per_second_down=4.5,
        bytes_per_second_up=5.5,
        cpu_cores=6,
        agent_version="0.1.0",
        speeds=[common_pb2.Speed(kind="dense", per_second=7.5)],
        simd_block=8,
    )


def test_codecs_that_nobody_here_knows_are_left_out() -> None:
    message = common_pb2.DeviceProfile(codecs=["zip", "int8", "x" * 10**6, "int8", "delta"])
    assert Profile.from_message(message).codecs == ("delta", "int8")


def test_speeds_that_make_no_sense_are_left_out() -> None:
    odd = {"still": 0.0, "back": -1.0, "never": math.inf, "what": math.nan, "long" * 20: 1.0, "dense": 2.0}
    message = common_pb2.DeviceProfile(
        speeds=[common_pb2.Speed(kind=kind, per_second=speed) for kind, speed in odd.items()], simd_block=3
    )
    profile = Profile.from_message(message)
    assert (profile.speeds, profile.simd_block) == ({"dense": 2.0}, 0)
    many = common_pb2.DeviceProfile(speeds=[common_pb2.Speed(kind=str(k), per_second=1.0) for k in range(1000)])
    assert len(Profile.from_message(many).speeds) == MOST_KINDS


def test_class_counts_that_cannot_be_so_are_left_out() -> None:
    def read(counts: list[int], examples: int) -> tuple[int, ...]:
        return Profile.from_message(common_pb2.DeviceProfile(class_counts=counts, examples=examples)).class_counts

    assert read([3, 0, 7], 10) == (3, 0, 7)
    assert read([3, 0, 7], 11) == ()
    assert read([1] * (MOST_CLASSES + 1), MOST_CLASSES + 1) == ()


def test_what_is_unset_is_unknown() -> None:
    profile = Profile.from_message(common_pb2.DeviceProfile(tier="x", examples=3))
    assert profile == Profile("x", 3, memory=None, macs_per_second=None, down=None, up=None, cores=0)
    message = Profile("x", 3).message("")
    assert (message.memory_bytes, message.macs_per_second) == (0, 0.0)
    assert (message.bytes_per_second_down, message.bytes_per_second_up) == (0.0, 0.0)


@given(profiles)
@settings(deadline=None, max_examples=50)
def test_a_profile_is_json(profile: Profile) -> None:
    told = json.loads(json.dumps(profile.as_dict()))
    assert Profile(**told | {name: tuple(told[name]) for name in ("codecs", "levers", "class_counts")}) == profile
