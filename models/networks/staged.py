"""What the networks that ship with diastole share: stages, so that methods can take them apart."""

from torch import Tensor, nn


class Network(nn.Module):
    """A network whose `forward(x)` is `leave(stage_n(... stage_1(enter(x))))`.

    Children before `stages` serve `enter`, and those after it serve `leave`.
    """

    stages: nn.ModuleList

    classifier: nn.Module
    """What `leave` alone uses; a method that never calls `leave` may do without it."""

    def enter(self, x: Tensor) -> Tensor:
        """Return the first stage's input for a batch of examples; by default the batch itself."""
        return x

    def leave(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]` from the last stage's output; by default those of the classifier."""
        logits: Tensor = self.classifier(x.flatten(1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        x = self.enter(x)
        for stage in self.stages:
            x = stage(x)
        return self.leave(x)
