"""Operators that are neither products nor moves: norms, reductions, pooling, and those entry by entry."""

from diastole.models.networks.custom.follow.follower import RULES, Call, Rule, marks_of, pointwise, rule
from diastole.models.networks.custom.follow.marks import Marks, placed, varies

RULES.update(
    dict.fromkeys(
        (
            *("clone", "_to_copy", "detach", "alias", "lift_fresh", "copy", "fill", "zero", "contiguous"),
            *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
            *("bernoulli", "native_dropout", "uniform", "normal", "exponential"),
            *("where", "masked_fill", "triu", "tril", "rsub", "remainder", "fmod", "polar", "complex"),
            *("hardswish", "_prelu_kernel", "log_sigmoid_forward", "rrelu_with_noise"),
        ),
        pointwise,
    )
)


@rule("_softmax", "_log_softmax", "_safe_softmax")
def softmax(call: Call) -> list[Marks]:
    """Keep the marks: a softmax over channels is one over those that are kept."""
    return [call.marks("self")]


@rule("glu")
def gated(call: Call) -> list[Marks]:
    """Unite the two halves, of which one is multiplied by what the other gives."""
    tensor, axis = call.given["self"], call.given["dim"] % call.given["self"].ndim
    shape = [size // 2 if k == axis else size for k, size in enumerate(tensor.shape)]
    starts, marks = (0, shape[axis]), call.marks("self")
    halves = [[m.narrow(axis, start, shape[axis]) if axis in varies(m) else m for m in marks] for start in starts]
    return [call.book.unite(*((half, shape) for half in halves))]


@rule("cumsum", "cumprod", "logcumsumexp", "sort", "topk", "cummax")
def ordered(call: Call) -> list[Marks]:
    """Keep what has an order."""
    axis, marks = call.given["dim"] % max(1, call.given["self"].ndim), call.marks("self")
    call.book.whole(mark for mark in marks if axis in varies(mark))
    return [[mark for mark in marks if axis not in varies(mark)]] * len(call.results)


SUMS = ("sum", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "linalg_vector_norm", "logsumexp", "norm")
CHOICES = ("max", "min", "argmax", "argmin", "any", "all", "prod", "median", "mode", "kthvalue")


@rule(*SUMS, *CHOICES)
def reduced(call: Call) -> list[Marks]:
    """Drop axes. A mean over channels is one over those that are kept; what tells which channel it was keeps all."""
    if "other" in call.given:
        return pointwise(call)
    axes, marks = call.given["self"].ndim, call.marks("self")
    gone = call.given.get("dim")
    dropped = {axis % max(1, axes) for axis in ([gone] if isinstance(gone, int) else gone or range(axes))}
    if call.name in CHOICES:
        call.book.whole(mark for mark in marks if varies(mark) & dropped)
    found = call.book.sum(marks, dropped)
    if not call.given.get("keepdim", False):
        left = [axis for axis in range(axes) if axis not in dropped]
        found = [placed(mark, left) for mark in found if left]
    return [found] * len(call.results)


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> list[Marks]:
    """Unite with scale and shift: a norm over channels is one over those that are kept."""
    return [call.book.unite(*(call.shaped(name) for name in call.there("input", "weight", "bias")))]


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("_batch_norm_no_update", "_batch_norm_with_update", "cudnn_batch_norm", "native_group_norm"),
)
def channel_norm(call: Call) -> list[Marks]:
    """Unite the channels with those of the scale, the shift and the statistics. The only group of a norm is kept."""
    x, shape = call.shaped("input")
    tail = [-1] * (len(shape) - 2)
    own = [call.shaped(name) for name in call.there("weight", "bias", "running_mean", "running_var")]
    lined = [([placed(mark, [0, *tail]) for mark in marks], [*size, *[1] * len(tail)]) for marks, size in own]
    found = call.book.unite((x, shape), *lined)
    if call.given.get("group") == 1:
        call.book.whole(mark for mark in found if 1 in varies(mark))
    return [found]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> list[Marks]:
    """Unite a weight's directions with their lengths, which have one axis."""
    return [call.book.unite(call.shaped("v"), call.shaped("g"))]


def _spatial(axes: int) -> Rule:
    """Return the rule of an operator on the last axes, which keeps the others."""

    def found(call: Call) -> list[Marks]:
        first = call.tensors[0]
        last = set(range(first.ndim - axes, first.ndim))
        marks = marks_of(first)
        call.book.whole(mark for mark in marks if varies(mark) & last)
        return [[mark for mark in marks if not varies(mark) & last]] * len(call.results)

    return found


for _axes, _linear in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    _kinds = ("avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "adaptive_max_pool")
    _names = [f"{kind}{_axes}d" for kind in (*_kinds, "upsample_nearest", "_upsample_nearest_exact")]
    RULES.update(
        dict.fromkeys([*_names, f"max_pool{_axes}d_with_indices", f"upsample_{_linear}{_axes}d"], _spatial(_axes))
    )
RULES.update(dict.fromkeys(["upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"], _spatial(2)))
