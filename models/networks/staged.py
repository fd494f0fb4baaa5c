"""What the networks that ship with diastole share: stages, so that methods can take them apart."""

from torch import Tensor, nn


class Network(nn.Module):
    """A network whose `forward(x)` is `leave(stage_n(... stage_1(enter(x))))`.

    Of its children, those before `stages` serve `enter`, and those behind it `leave`.
    """

    stages: nn.ModuleList

    classifier: nn.Module
    """What `leave` alone uses; a method that never calls `leave` may do without it."""

    def enter(self, x: Tensor) -> Tensor:
        """Return what the first stage takes, from a batch of examples: the batch, unless a network says otherwise."""
        return x

    def leave(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]` from what the last stage gives: the classifier's, or what a network says."""
        logits: Tensor = self.classifier(x.flatten(1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        x = self.enter(x)
        for stage in self.stages:
            x = stage(x)
        return self.leave(x)
