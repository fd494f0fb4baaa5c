"""HeteroFL's masked cross-entropy, and the averaging that goes with it (Diao et al., ICLR 2021, and their code).

On a device, the logits of classes that it has no examples of are zero in the loss, so that nothing moves the rows of
the classifier that belong to them. The server averages each row over the devices that have examples of its class.

Here nobody tells the server who has examples of what: a row that comes back as it was sent is one that no example has
trained. So nothing more travels, but what does tells the server which classes a device lacks. (A row whose examples'
gradients all round to zero comes back as it was sent too, and is not averaged.)
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.models.compressor import Contribution, Patch, Scalars
from diastole.models.errors import SpecError
from diastole.models.methods.nested import Nested
from diastole.models.methods.selected import Selected
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import classifier
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Step, TrainConfig

MASKED = (1.0,)
"""The `objective` of a spec whose module is `Masked`."""


class Masked(Nested):
    """The plain network of a width, which learns only of the classes that its device has examples of."""

    def loss(self, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the mean cross-entropy, with the logits of classes that none of the task's labels has at zero."""
        logits = self(x)
        absent = torch.ones_like(logits[0], dtype=torch.bool).index_fill(0, step.labels, False)
        return F.cross_entropy(logits.masked_fill(absent, 0.0), y)


class Masking(Selected):
    """A method whose sub-models may be `Masked`; then it covers only those of the classifier's rows that have changed.

    A row is the weights and the bias of a class. All else is covered as without masks.
    """

    def dilate(self, state: State, spec: SubModelSpec) -> Contribution:
        """Put the values back where they came from; not the rows that came back as they were sent, if it is masked."""
        found = super().dilate(state, spec)
        return trained(found, self._state, classifier(self._model)) if spec.objective == MASKED else found


def objective(masked: bool, model: ModelConfig, training: TrainConfig) -> tuple[float, ...]:
    """Return what the specs of a method say of its loss.

    Raises `SpecError` if devices would move rows that no example trains, or if no layer has rows of classes.
    """
    if not masked:
        return ()
    if training.weight_decay:
        raise SpecError("masked = true needs weight_decay = 0: decay moves rows that no example trains")
    if not classifier(model):
        raise SpecError("masked = true needs a model that returns the logits of a linear layer as they are")
    return MASKED


def trained(contribution: Contribution, state: State, head: str) -> Contribution:
    """Return a contribution without those rows of the classifier that equal the global state's.

    Args:
        contribution: of one device, with all of the classifier's rows.
        state: the global state, of which the device was sent a part.
        head: the classifier's path.

    """
    rows = {name: contribution[name] for name in (f"{head}.weight", f"{head}.bias") if name in contribution}
    moved = [patch.values != patch.region.view(state[name]) for name, patch in rows.items()]
    mine = torch.cat([scalars.view(len(scalars), -1) for scalars in moved], 1).any(1)
    if mine.all():
        return contribution
    some = {}
    for name, patch in rows.items():
        places = patch.region.view(torch.arange(state[name].numel()).view(state[name].shape))
        some[name] = Patch(Scalars(places[mine].flatten()), patch.values[mine].flatten())
    return {**contribution, **some}
