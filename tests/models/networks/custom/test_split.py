"""Modules that a user brings with named blocks: what they are taken apart into, and methods that cut their depth."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import brought
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from diastole.experiments.errors import ExperimentError
from diastole.models.coordinates import covered
from diastole.models.errors import ModelError, SpecError
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.depths import inclusivefl, nefl
from diastole.models.methods.depths.exits import Exited, Stages, shape_of
from diastole.models.methods.registry import build, make_method
from diastole.models.methods.stitching import stitched
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import initial_state, narrowed, network, parts, whole
from diastole.models.state import State, state_of
from diastole.models.training import TrainConfig
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

TRAINING = TrainConfig(batch_size=8)
WIDTHS = (1.0, 0.5, 0.25)

MODERN_STAGES = (("first.0", "first.1", "first.2"), ("second.0", "second.1"))
JOINED_STAGES = (("blocks.join1", "blocks.refine1"), ("blocks.join2", "blocks.refine2"))


def custom_model(name: str, *stages: tuple[str, ...], group: int = 2) -> ModelConfig:
    return ModelConfig("custom", (3, 8, 8), classes=4, group=group, factory=f"brought:{name}", stages=stages)


MODERN, JOINED = custom_model("Modern", *MODERN_STAGES), custom_model("Joined", *JOINED_STAGES)
PERCEPTRONS = custom_model("Perceptrons", ("blocks.0", "blocks.1"))
MOBILE = custom_model("Mobile", ("blocks.0",), ("blocks.1", "blocks.2"), group=4)
# As few blocks as have something to leave out; routes and pools grow with the square of their number.
SHORT = custom_model("Modern", ("first.2",), ("second.0", "second.1"))
MODELS = {model.factory.partition(":")[2]: model for model in (MODERN, JOINED, PERCEPTRONS, MOBILE)}


def examples(model: ModelConfig, count: int = 3) -> Tensor:
    return torch.randn(count, *model.input_shape, generator=torch.Generator().manual_seed(0))


def own(model: ModelConfig, state: State) -> Any:
    """Return the user's own module with the parameters of a global state."""
    module = getattr(brought, model.factory.partition(":")[2])()
    module.load_state_dict({path: state[name] for name, path in custom.paths(model).items()})
    return module


# The whole


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_whole_is_the_users_module_to_the_bit(model: ModelConfig, random_state: Callable[..., State]) -> None:
    state, x = random_state(model), examples(model)
    module = network(model)
    module.load_state_dict(state)
    assert torch.equal(module(x), own(model, state)(x))
    assert torch.equal(network(model, whole(model)).load_state_dict(state) and module(x), module(x))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = getattr(brought, model.factory.partition(":")[2])().state_dict()
    fresh = initial_state(model, 3)
    assert {name: theirs[path] for name, path in custom.paths(model).items()}.keys() == fresh.keys()
    assert all(torch.equal(fresh[name], theirs[path]) for name, path in custom.paths(model).items())
    y = parts(module).enter(x)
    for stage in parts(module).stages:
        y = stage(y)
    assert torch.equal(parts(module).leave(y), module(x))


def test_gradients_are_the_users_too(random_state: Callable[..., State]) -> None:
    state, x = random_state(JOINED), examples(JOINED)
    module, theirs = network(JOINED), own(JOINED, state)
    module.load_state_dict(state)
    module(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for name, path in custom.paths(JOINED).items():
        assert torch.equal(module.get_parameter(name).grad, theirs.get_parameter(path).grad)


def test_parameters_are_called_by_their_stage_and_block() -> None:
    paths = custom.paths(JOINED)
    assert paths["entry.stem.weight"] == "stem.weight"
    assert paths["stages.0.1.conv.weight"] == "blocks.refine1.conv.weight"
    assert paths["stages.1.0.lead.between.weight"] == "between.weight"
    assert paths["stages.1.0.block.norm.bias"] == "blocks.join2.norm.bias"
    assert paths["classifier.weight"] == "classifier.weight"
    assert "behind.norm.weight" in custom.paths(MODERN)
    assert custom.paths(custom_model("Dense"))["stem.weight"] == "stem.weight"
    narrow = network(JOINED, replace(narrowed(JOINED, 0.5), blocks=((0,), (0, 1))))
    assert {name for name, _ in narrow.named_parameters()} == {n for n in paths if not n.startswith("stages.0.1.")}


@pytest.mark.parametrize("bad", [((0, 1, 2),), ((0, 1), (0, 7)), ((0, 1), (0, 1), (0,)), ((1,), (0,)), ((0, 0), (0,))])
def test_blocks_that_there_are_not_are_refused(bad: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(SpecError, match="blocks") as caught:
        network(JOINED, replace(whole(JOINED), blocks=bad))
    assert "\n" not in str(caught.value)


# Sizes


def prepared(method: str, model: ModelConfig, widths: Sequence[float] = WIDTHS, **options: object) -> Indexed:
    made = make_method(method, model, widths, TRAINING, options)
    assert isinstance(made, Indexed)
    draws = torch.Generator().manual_seed(1)
    state = {n: t + 0.05 * torch.randn(t.shape, generator=draws) for n, t in made.initial(0).items()}
    made.prepare(state, None, Moment())
    return made


@pytest.mark.parametrize("method", ["width", "depthfl", "scalefl"])
def test_a_size_is_the_whole_one_without_what_was_dropped(method: str) -> None:
    # With GroupNorm, channels that are zero contribute nothing, whatever is made of them.
    made, x = prepared(method, JOINED), examples(JOINED)
    state = made.compress(made.whole)
    narrower = {size.spec for size in made.offers()} - {made.whole}
    assert narrower
    for spec in narrower:
        part, full, sent = build(JOINED, spec), build(JOINED, made.whole), made.compress(spec)
        part.load_state_dict(sent)
        masks = covered(made.dilate(sent, spec), state)
        full.load_state_dict({name: tensor * masks[name] for name, tensor in state.items()})
        pairs = [(part(x), full(x))] if method == "width" else zip(part.logits(x), full.logits(x), strict=False)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_exits_read_what_the_users_own_stages_give(count: int, random_state: Callable[..., State]) -> None:
    state, x = random_state(MODERN), examples(MODERN)
    theirs, module = own(MODERN, state), Exited(MODERN, shape_of(MODERN, Stages(stages=count)))
    module.trunk.load_state_dict({n: state[n] for n, _ in module.trunk.named_parameters()})
    first = theirs.first(theirs.patches(x))
    expected = [module.exits[0](first)]
    if count == 2:
        expected.append(theirs(x))
    assert len(module.logits(x)) == count
    assert all(torch.equal(mine, z) for mine, z in zip(module.logits(x), expected, strict=True))
    assert torch.equal(module.last(x), expected[-1])
    names = {name.partition(".")[0] for name, _ in module.trunk.named_parameters()}
    assert names == ({"entry", "stages"} if count == 1 else {"entry", "stages", "behind", "classifier"})


def test_exits_of_tokens_and_of_vectors_pool_what_there_is() -> None:
    exit_ = Exited(PERCEPTRONS, shape_of(PERCEPTRONS, Stages(0.5))).exits
    assert not exit_
    two = replace(PERCEPTRONS, stages=(("blocks.0",), ("blocks.1",)))
    (exit_,) = Exited(two, shape_of(two, Stages(0.5))).exits
    y = torch.randn(3, 16, 4)
    pooled = y.reshape(3, 4, 4, 4).mean(2).transpose(1, 2)
    hidden = torch.einsum("oc,ncp->nop", exit_.bottleneck.weight[:, :, 0], pooled)
    hidden = F.relu(F.group_norm(hidden, 2, exit_.norm.weight, exit_.norm.bias))
    torch.testing.assert_close(exit_(y), F.linear(hidden.flatten(1), exit_.head.weight, exit_.head.bias))
    flat = custom_model("Vectors", ("one",), ("two",))
    (exit_,) = Exited(flat, shape_of(flat, Stages())).exits
    y = torch.randn(3, 8)
    hidden = F.relu(F.group_norm(y @ exit_.bottleneck.weight.T, 4, exit_.norm.weight, exit_.norm.bias))
    torch.testing.assert_close(exit_(y), F.linear(hidden, exit_.head.weight, exit_.head.bias))


def test_nefl_skips_blocks_and_narrows_them() -> None:
    made, x = prepared("nefl", JOINED), examples(JOINED)
    paths, steps, skipped = custom.paths(JOINED), set[str](), 0
    for spec in (size.spec for size in made.offers()):
        module, sent = build(JOINED, spec), made.compress(spec)
        module.load_state_dict(sent)
        theirs = brought.Joined()
        places = make_method("width", JOINED, {spec.options.width}, TRAINING)
        assert isinstance(places, Indexed)
        (width,) = (size.spec for size in places.offers())
        for parameter in theirs.parameters():
            parameter.data.zero_()
        for name, tensor in sent.items():
            if not name.endswith(".step"):
                plain = name if name in paths else name.replace(".block.", ".", 1)
                places.slots(width)[plain].region.put_(theirs.get_parameter(paths[plain]).data, tensor)
        kept = spec.options.blocks or ((0, 1), (0, 1))
        step = {name: sent[name] for name in sent if name.endswith(".step")}
        steps |= set(step)
        y = theirs.blocks["join1"](theirs.stem(x))
        if 1 in kept[0]:
            y = y + step["stages.0.1.step"] * (theirs.blocks["refine1"](y) - y)
        y = theirs.blocks["join2"](F.max_pool2d(theirs.between(y), 2))
        if 1 in kept[1]:
            # What runs between two blocks goes with the one behind it, and without it does not run.
            y = y + step["stages.1.1.step"] * (theirs.blocks["refine2"](F.relu(y)) - y)
        else:
            skipped += 1
        torch.testing.assert_close(module(x), theirs.classifier(y.flatten(1)), rtol=1e-4, atol=1e-5)
    assert skipped
    assert steps == {"stages.0.1.step", "stages.1.1.step"}


def test_a_fresh_step_is_one_to_the_bit(random_state: Callable[..., State]) -> None:
    state, x = random_state(MODERN), examples(MODERN)
    module = nefl.build(MODERN, nefl.spec_of())
    values = {name: tensor for name, tensor in state_of(module).items() if name.endswith(".step")}
    for name, _ in module.named_parameters():
        plain = name if name in state else name.replace(".block.", ".", 1)
        values.setdefault(name, state.get(plain, torch.ones(())))
    module.load_state_dict(values)
    assert torch.equal(module(x), own(MODERN, state)(x))
    short = nefl.build(MODERN, nefl.spec_of(blocks=((0, 2), (0,))))
    short.load_state_dict({name: values[name] for name, _ in short.named_parameters()})
    theirs = own(MODERN, state)
    del theirs.first[1], theirs.second[1]
    assert torch.equal(short(x), theirs(x))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_inclusivefl_ends_behind_any_block(depth: int, random_state: Callable[..., State]) -> None:
    spec = inclusivefl.depths(MODERN)[depth - 1]
    module, x = build(MODERN, spec), examples(MODERN)
    state = random_state(MODERN)
    module.load_state_dict(
        {n: state[n] if n.startswith(("entry", "stages")) else p for n, p in state_of(module).items()}
    )
    theirs = own(MODERN, state)
    y = theirs.patches(x)
    for k, block in enumerate([*theirs.first, *theirs.second][:depth]):
        y = block(theirs.shrink(y) if k == 3 else y)
    norm, channels = module.behind.norm, 8 if depth < 4 else 16
    y = F.layer_norm(y.mean((2, 3)), [channels], norm.weight, norm.bias)
    assert torch.equal(module(x), F.linear(y, module.classifier.weight, module.classifier.bias))
    assert module.classifier.in_features == channels


def test_inclusivefl_sizes_have_a_classifier_of_their_own_shape() -> None:
    made, x = prepared("inclusivefl", JOINED), examples(JOINED)
    first, *_ = (size.spec for size in made.offers())
    assert first.options.blocks == ((0,),)
    module, sent = build(JOINED, first), made.compress(first)
    module.load_state_dict(sent)
    y = F.conv2d(x, sent["entry.stem.weight"], sent["entry.stem.bias"], padding=1)
    block = brought.Joining(8, 4)
    block.load_state_dict({n.removeprefix("stages.0.0."): t for n, t in sent.items() if n.startswith("stages.0.0.")})
    assert torch.equal(module(x), F.linear(block(y).flatten(1), sent["classifier.weight"], sent["classifier.bias"]))
    slots = made.slots(first)
    assert sent["classifier.weight"].shape == (4, 12 * 64)
    assert slots["classifier.weight"].source == "size0.classifier.weight"
    assert slots["entry.stem.weight"].source == "entry.stem.weight"


def test_where_a_network_cannot_end_one_line_says_so() -> None:
    model = custom_model("chain_behind", ("a",), ("b",))
    custom.allow(model.factory)
    match = r"brought:chain_behind cannot end behind block 'a': what runs behind the blocks cannot take \[8, 8, 8\]"
    with pytest.raises(ModelError, match=match) as caught:
        make_method("inclusivefl", model, WIDTHS, TRAINING)
    assert "\n" not in str(caught.value)
    # An exit needs nothing of what is behind.
    assert len(make_method("depthfl", model, WIDTHS, TRAINING).offers()) == 2


@pytest.mark.parametrize(
    "method",
    [
        "diastole",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("deps", "snnetv2", "snnet", "ofa", "superfednas", "adaptivefl")
        ),
    ],
)
def test_other_methods_train_what_is_cut(method: str, separable: Callable[..., Any]) -> None:
    options: dict[str, object] = {"pool": 3} if method in ("ofa", "deps", "superfednas") else {}
    options |= {"initialise": "none", "warmup": 0} if method.startswith("snnet") else {}
    made, x = prepared(method, SHORT, (1.0, 0.25), **options), examples(SHORT)
    depths = set()
    for spec in (size.spec for size in made.offers()):
        module = build(SHORT, spec)
        module.load_state_dict(made.compress(spec))
        assert module(x).shape == (3, 4)
        depths.add(getattr(spec.options, "blocks", ()))
    assert method not in ("ofa", "deps", "superfednas") or len(depths) > 1


@pytest.mark.parametrize(("model", "depths"), [(SHORT, []), (MODERN, [[1, 1], [3, 2]])], ids=["paired", "unpaired"])
@pytest.mark.slow
def test_stitches_change_networks_behind_a_users_block(model: ModelConfig, depths: list[list[int]]) -> None:
    made, x = prepared("snnet", model, (1.0, 0.25), initialise="none", warmup=0, depths=depths), examples(model)
    module = build(model, made.whole)
    module.load_state_dict(made.compress(made.whole))
    for number in range(len(made.family.widths) + 1, len(made.family.routes) + 1):
        route = made.family.route(number)
        front, back = route.segments
        y, stitch = module.anchors[str(front.anchor)].enter(x), module.stitches[route.stitches[0]]
        blocks = [[b for s in module.anchors[str(k.anchor)].stages for b in s] for k in (front, back)]
        for block in blocks[0][: front.stop]:
            y = block(y)
        y = torch.einsum("oc,nchw->nohw", stitch.weight.flatten(1), y) + stitch.bias[:, None, None]
        for block in blocks[1][back.start :]:
            y = block(y)
        expected = module.anchors[str(back.anchor)].leave(y)
        spec = stitched.spec_of("snnet", replace(made.whole.options, route=number))
        part = build(model, spec)
        part.load_state_dict(made.compress(spec))
        torch.testing.assert_close(part(x), expected, rtol=1e-4, atol=1e-5)


def test_anchors_of_a_module_differ_in_depth_only_where_its_blocks_are_named() -> None:
    with pytest.raises(SpecError, match=r"model custom has no blocks .*, or name the blocks in model\.stages"):
        prepared("snnet", custom_model("Modern"), depths=[[1], [1], [1]])


# A whole run


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("JoinedDigits", "inclusivefl"),
        pytest.param("ModernDigits", "scalefl", marks=pytest.mark.slow),
        pytest.param("ModernDigits", "nefl", marks=pytest.mark.slow),
        pytest.param("JoinedDigits", "depthfl", marks=pytest.mark.slow),
        pytest.param("ModernDigits", "depthfl", marks=pytest.mark.slow),
        pytest.param("ModernDigits", "inclusivefl", marks=pytest.mark.slow),
        pytest.param("JoinedDigits", "nefl", marks=pytest.mark.slow),
        pytest.param("JoinedDigits", "scalefl", marks=pytest.mark.slow),
    ],
)
def test_a_federation_trains(name: str, method: str) -> None:
    stages = {"ModernDigits": MODERN_STAGES, "JoinedDigits": JOINED_STAGES}[name]
    document = {
        "seed": 4,
        "method": method,
        "model": {"name": "custom", "factory": f"brought:{name}", "group": 2, "stages": stages},
        "rounds": {"count": 2},
        "training": {"epochs": 1, "batch_size": 256},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.75}},
    }
    federation = make_federation(Simulation.parse(document, "test"))
    before = federation.run.method().initial(0)
    outcome = simulate(federation)
    assert [closed.updates for closed in outcome.rounds] == [3, 3]
    assert outcome.state.keys() == before.keys()
    assert all(tensor.isfinite().all() for tensor in outcome.state.values())
    assert len({size.spec for size in outcome.sizes}) > 1


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        pytest.param("batched", "depthfl", marks=pytest.mark.slow),
        pytest.param("batched", "nefl", marks=pytest.mark.slow),
        pytest.param("processes", "scalefl", marks=pytest.mark.slow),
    ],
)
def test_engines_train_it_as_the_loop_does(engine: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(brought.__file__).parent))
    document = {
        "method": method,
        "model": {"name": "custom", "factory": "brought:JoinedDigits", "group": 2, "stages": JOINED_STAGES},
        "rounds": {"count": 1},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 2, "width": 0.75}},
    }
    expected = simulate(make_federation(Simulation.parse(document, "test")))
    found = simulate(make_federation(Simulation.parse(document | {"engine": engine, "workers": 1}, "test")))
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-4, atol=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("kind", "stages", "message"),
    [
        ("", [["a"], ["c"]], r"stages: there is no module 'c'; there are stem, classifier, a, a.norm"),
        ("", [["a"], ["a"]], r"stages: block 'a' is named 2 times"),
        ("", [["b"], ["b.0"]], r"stages: block 'b.0' is inside block 'b'"),
        ("", [["b"], ["a"]], r"stages: block 'a' runs before 'b'; name blocks in the order"),
        ("idle", [["a"], ["c"]], r"stages: block 'c' is called nowhere in forward"),
        ("idle", [["a"], ["b"]], r"layer 'c' is not called in forward"),
        ("twice", [["a"], ["b"]], r"stages: block 'a' is called 2 times"),
        ("round", [["a"], ["b"]], r"stages: operator add reads 'a' past 'b'; .* let the block itself add or join"),
        ("past", [["a"], ["b"]], r"stages: operator sigmoid reads 'stem' past 'b'"),
        ("examples", [["a"], ["b"]], r"stages: operator .mean\(\) reads the examples past 'b'"),
        ("beside", [["a"], ["b"]], r"stages: 'b' reads 'stem' past 'a'"),
        (
            "control",
            [["a"], ["b"]],
            r"forward of the module itself \(Chain\) cannot be followed, line \d+ of brought.py: ",
        ),
        ("constant", [["a"], ["b"]], r"stages: forward makes a tensor of its own outside the blocks"),
        ("training", [["a"], ["b"]], r"does something else in training, at operator dropout; .* use nn.Dropout"),
        ("inplace", [["a"], ["b"]], r"stages: block 'b', or what runs before it, overwrites what it takes"),
        ("pair", [["a"], ["b"]], r"stages: block 'a' gives a tuple; expected one tensor"),
        ("wider", [["a", "b"]], r"stages: block 'b' takes \[8, 8, 8\] and gives \[16, 8, 8\]; only the first block"),
        ("joined", [["a", "b"]], r"stages: block 'b' gives channels that are narrowed otherwise; only the first"),
    ],
)
def test_what_cannot_be_taken_apart_is_one_line_that_names_it(kind: str, stages: list[list[str]], message: str) -> None:
    model = custom_model(f"chain_{kind}", *map(tuple, stages))
    custom.allow(model.factory)
    with pytest.raises(ModelError, match=message) as caught:
        network(model)
    assert "\n" not in str(caught.value)


def test_a_block_is_called_with_one_tensor() -> None:
    model = custom_model("TwoArguments", ("block",))
    with pytest.raises(ModelError, match="block 'block' is called with 2 arguments; expected one tensor alone"):
        network(model)


@pytest.mark.parametrize("method", ["depthfl", "scalefl", "inclusivefl"])
def test_without_named_blocks_there_is_no_depth(method: str) -> None:
    with pytest.raises(
        ModelError, match=r"brought:Mobile has no depth to cut.* nobody has named its blocks.*model.stages"
    ):
        make_method(method, replace(MOBILE, stages=()), WIDTHS, TRAINING)
    with pytest.raises(ModelError, match=r"Mobile has no stages.*by naming its blocks in model.stages"):
        make_method("nefl", replace(MOBILE, stages=()), WIDTHS, TRAINING)


def test_a_supernet_cannot_have_concatenations() -> None:
    made = prepared("ofa", JOINED, pool=1)
    with pytest.raises(SpecError, match="cannot be sliced behind a concatenation"):
        made.compress(made.offers()[0].spec)


def test_only_custom_models_name_blocks() -> None:
    message = 'stages: only model "custom" takes them; "cnn" has stages of its own'
    with pytest.raises(ValidationError, match=message):
        ModelConfig("cnn", (1, 8, 8), 4, stages=(("a",),))
    plain = ModelConfig("cnn", (1, 8, 8), 4)
    assert "stages" not in plain.to_json()
    with pytest.raises(ModelError, match=message) as caught:
        ModelConfig.from_json(plain.to_json().removesuffix("}") + ',"stages":[["a"]]}')
    assert "\n" not in str(caught.value)
    with pytest.raises(ExperimentError, match=rf"test: model: {message}"):
        Simulation.parse({"model": {"name": "cnn", "stages": [["a"]]}}, "test")
    for wrong in ([[]], [[""]], ["a"]):
        with pytest.raises(ExperimentError, match=r"model.stages.0"):
            Simulation.parse({"model": {"name": "custom", "stages": wrong}}, "test")


def test_named_blocks_travel() -> None:
    assert ModelConfig.from_json(JOINED.to_json()) == JOINED
    assert Simulation.parse({"model": {"name": "custom", "stages": [["a", "b.0"], ["c"]]}}, "test").network(
        (1, 8, 8), 4
    ).stages == (
        ("a", "b.0"),
        ("c",),
    )
