"""A user's own module, taken apart at the blocks that the user names (`cuts` says where)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from diastole.models.errors import ModelError, SpecError
from diastole.models.networks.custom.cuts import Cuts, Piece, at
from diastole.models.networks.staged import Network


class Steps(nn.Module):
    """A piece of a forward pass with the layers that it uses, which keep their paths."""

    def __init__(self, piece: Piece, module: nn.Module) -> None:
        super().__init__()
        self._steps = piece.run
        for path in piece.uses:
            owner: nn.Module = self
            *outer, name = path.split(".")
            for part in outer:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            setattr(owner, name, at(module, path))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last step."""
        return self._steps(self, x)


class WithLead(nn.Module):
    """A block and what runs before it."""

    def __init__(self, lead: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.lead, self.block = lead, block

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y: Tensor = self.block(self.lead(x))
        return y


class Split(Network):
    """A user's module as a network with stages; with all of them its `forward` computes what the user's does.

    Layers keep their names within their part: `entry.PATH`, `stages.STAGE.BLOCK.NAME`, with `lead.PATH` or
    `block.NAME` in place of NAME if something runs before the block, `behind.PATH` and `classifier`.
    """

    def __init__(self, cuts: Cuts, module: nn.Module) -> None:
        super().__init__()

        def steps(piece: Piece | None) -> nn.Module:
            return nn.Identity() if piece is None else Steps(piece, module)

        def block(lead: Piece | None, path: str) -> nn.Module:
            found = module.get_submodule(path)
            return found if lead is None else WithLead(Steps(lead, module), found)

        self.entry = steps(cuts.entry)
        self.stages = nn.ModuleList(nn.Sequential(*(block(*each) for each in stage)) for stage in cuts.stages)
        self.behind = steps(cuts.behind)
        self.classifier = module.get_submodule(cuts.classifier) if cuts.classifier else nn.Identity()

    def enter(self, x: Tensor) -> Tensor:
        """Return the input of the first block."""
        y: Tensor = self.entry(x)
        return y

    def leave(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]` from the output of the last block."""
        logits: Tensor = self.classifier(self.behind(x))
        return logits

    def keep(self, blocks: Sequence[Sequence[int]]) -> None:
        """Keep, in place, only some blocks, under their names; fewer stages are the first ones.

        Raises `SpecError` if there are no such blocks.
        """
        full = [[int(name) for name, _ in stage.named_children()] for stage in self.stages]
        if len(blocks) > len(full) or any(
            list(kept) != [block for block in every if block in kept] for kept, every in zip(blocks, full, strict=False)
        ):
            raise SpecError(f"blocks {[list(kept) for kept in blocks]}: there are {full}")
        self.stages = nn.ModuleList(
            nn.Sequential(OrderedDict((str(block), stage.get_submodule(str(block))) for block in kept))
            for kept, stage in zip(blocks, self.stages, strict=False)
        )


def split(cuts: Cuts, module: nn.Module) -> Split:
    """Return a module, cut. Raises `ModelError` if a layer with parameters is in no part of it."""
    found = Split(cuts, module)
    there = {id(parameter) for parameter in found.parameters()}
    for name, parameter in module.named_parameters():
        if id(parameter) not in there:
            raise ModelError(f"layer {name.rpartition('.')[0]!r} is not called in forward; remove it, it does nothing")
    return found
