import pytest
import torch
from torch import Tensor, nn

from diastole.models.errors import ModelError, StateError
from diastole.models.recalibrate import keep_no_statistics, mixes_examples, needs_statistics, ready, recalibrate
from diastole.models.scoring import evaluate
from diastole.models.state import state_of
from diastole.models.training import Examples


def network(tracks: bool) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=tracks),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
        nn.BatchNorm1d(5, track_running_stats=tracks),
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return module


def drawn(x: Tensor) -> Tensor:
    """Return inputs in the order in which they make batches."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("tracks", [False, True])
def test_statistics_are_the_mean_over_batches_of_what_normalises_each(tracks: bool) -> None:
    module, x = network(tracks), 2 + 3 * torch.randn(10, 3, 6, 6)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    done = recalibrate(module, x, 4)
    x = drawn(x)
    conv, norm, linear, last = module[0], module[1], module[5], module[6]
    sums = [[torch.zeros(4), torch.zeros(4)], [torch.zeros(5), torch.zeros(5)]]
    with torch.no_grad():
        for start in range(0, 10, 4):
            maps = conv(x[start : start + 4])
            for c in range(4):
                values = maps[:, c].flatten()
                sums[0][0][c] += len(maps) * values.mean()
                sums[0][1][c] += len(maps) * ((values - values.mean()) ** 2).mean()
                maps[:, c] = (maps[:, c] - values.mean()) / (((values - values.mean()) ** 2).mean() + norm.eps).sqrt()
                maps[:, c] = maps[:, c] * norm.weight[c] + norm.bias[c]
            features = linear(maps.relu().flatten(1))
            sums[1][0] += len(maps) * features.mean(0)
            sums[1][1] += len(maps) * ((features - features.mean(0)) ** 2).mean(0)
    for layer, (mean, variance) in zip((done[1], done[6]), sums, strict=True):
        torch.testing.assert_close(layer.running_mean, mean / 10)
        torch.testing.assert_close(layer.running_var, variance / 10)
    assert {name: tensor.clone() for name, tensor in module.state_dict().items()}.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert last.track_running_stats == tracks


def test_inputs_that_are_sorted_have_the_statistics_of_all() -> None:
    module, level = network(False), torch.arange(400).view(-1, 1, 1, 1) / 100
    x = 4 * level + torch.randn(400, 3, 6, 6)
    done, together = recalibrate(module, x), recalibrate(module, x, 400)
    torch.testing.assert_close(done[1].running_var, together[1].running_var, rtol=0.05, atol=0)
    assert (done(x) - together(x)).abs().max() < 0.2
    # Of sorted batches each has the variance of its own half, which is a quarter of that of all.
    halves = [recalibrate(module, half) for half in x.split(200)]
    assert max(half[1].running_var.max() for half in halves) < 0.5 * together[1].running_var.max()


def test_what_it_says_of_one_example_no_longer_depends_on_the_others() -> None:
    module, x = network(False).eval(), torch.randn(8, 3, 6, 6)
    done = recalibrate(module, x)
    torch.testing.assert_close(done(x)[:2], done(x[:2]))
    # All of them in one batch are normalised as they were when the statistics were taken.
    torch.testing.assert_close(done(x), module(x))
    assert (module(x)[:2] - module(x[:2])).abs().max() > 0.1


def test_without_inputs_it_says_so() -> None:
    with pytest.raises(ModelError, match="no inputs"):
        recalibrate(network(False), torch.zeros(0, 3, 6, 6))


def test_a_single_input_that_is_left_over_joins_the_batch_before_it() -> None:
    module, x = network(False), torch.randn(9, 3, 6, 6)
    done, conv, x = recalibrate(module, x, 4), module[0], drawn(x)
    with torch.no_grad():
        maps = [conv(x[:4]), conv(x[4:])]
    means = [batch.mean((0, 2, 3)) * len(batch) / 9 for batch in maps]
    torch.testing.assert_close(done[1].running_mean, means[0] + means[1])
    assert done[6].num_batches_tracked == 2


def test_one_input_is_enough_only_for_maps() -> None:
    with pytest.raises(ModelError, match="at least 2 inputs"):
        recalibrate(network(False), torch.randn(1, 3, 6, 6))
    maps, x = network(False)[:3], torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(recalibrate(maps, x)(x), maps(x))


def test_what_is_evaluated_does_not_depend_on_the_order_of_the_test_set() -> None:
    module, x, y = network(False), 2 + 3 * torch.randn(200, 3, 6, 6), torch.arange(200) % 5
    order = torch.argsort(x.mean((1, 2, 3)))
    done = ready(module, torch.randn(50, 3, 6, 6))
    shuffled, sorted_ = evaluate(done, Examples(x, y)), evaluate(done, Examples(x[order], y[order]))
    assert shuffled.accuracy == sorted_.accuracy
    assert shuffled.loss == pytest.approx(sorted_.loss, rel=1e-5)
    # As it is trained, the same model says something else of each order.
    assert evaluate(module, Examples(x, y)).loss != pytest.approx(
        evaluate(module, Examples(x[order], y[order])).loss, rel=1e-3
    )


def test_what_normalises_each_example_by_itself_is_evaluated_as_it_is() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.Linear(8, 5))
    assert not mixes_examples(module)
    assert ready(module, torch.empty(0)) is module


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_proxy_set_batch_normalisation_is_refused_in_one_line(count: int) -> None:
    with pytest.raises(
        ModelError, match=f"BatchNorm2d is .* has {count} training examples; set data.proxy to keep at least 2"
    ) as caught:
        ready(network(False), torch.randn(count, 3, 6, 6))
    assert len(str(caught.value).splitlines()) == 1


class Ordinary(nn.Module):
    """As people write them: every norm keeps running statistics, each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-2, momentum=None)
        self.other, self.each = nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.own = nn.InstanceNorm2d(4)
        self.linear, self.last = nn.Linear(4 * 16, 6), nn.SyncBatchNorm(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.each(self.other(self.norm(input=self.conv(x)).relu()))
        return self.last(self.linear(self.own(x + 1).flatten(1)))


def test_an_ordinary_module_keeps_no_statistics_until_they_are_taken() -> None:
    x, module = 2 + 3 * torch.randn(40, 3, 6, 6), Ordinary()
    with pytest.raises(StateError, match=r"Ordinary has running statistics \('norm', 'each', 'last'\)"):
        state_of(module)
    keep_no_statistics(module)
    assert not list(module.named_buffers())
    assert set(state_of(module)) == {name for name, _ in Ordinary().named_parameters()}
    assert mixes_examples(module)
    done = ready(module, x)
    # The user's own class takes all of it, and computes the same.
    own = Ordinary()
    own.load_state_dict(done.state_dict())
    own.eval()
    torch.testing.assert_close(own(x[:3]), done(x[:3]))
    torch.testing.assert_close(own(x), done(x))
    assert (done.norm.eps, done.norm.momentum) == (1e-2, None)
    with torch.no_grad():
        maps = module.conv(x)
        centred, variance = maps - maps.mean((0, 2, 3), True), maps.var((0, 2, 3), correction=0, keepdim=True)
        maps = module.other((centred / (variance + 1e-2).sqrt()).relu())
    torch.testing.assert_close(own.each.running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(own.each.running_var, torch.stack([m.flatten(1).var(1, False) for m in maps]).mean(0))


def test_an_instance_norm_with_statistics_is_no_reason_to_train_apart() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True))
    keep_no_statistics(module)
    assert not mixes_examples(module)
    assert needs_statistics(module)
    x = torch.randn(5, 3, 6, 6)
    done = ready(module, x)
    assert (done(x) - module(x)).abs().max() > 0.1
    torch.testing.assert_close(done(x)[:1], done(x[:1]))
    with pytest.raises(
        ModelError, match="with InstanceNorm2d is evaluated with statistics of the proxy set, which has 0"
    ):
        ready(module, x[:0])
