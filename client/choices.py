"""What a device's owner chooses by a word; nothing heavy is imported, so that a command's help can name them."""

from typing import Literal

ExecutionPlan = Literal["reference", "fast"]
"""How to train: with the bits of the reference, or by what is measured to be faster."""

Personal = Literal["none", "head", "finetune"]
"""What a device trains further for itself alone: nothing, the layer that gives the outputs, or the whole sub-model."""

PlaceName = Literal["auto", "cpu", "cuda", "mps"]
"""Where to train; "auto" is an accelerator if there is one."""
