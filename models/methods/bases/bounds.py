"""Bounded types for the fields of specs, because devices read specs that others wrote."""

from typing import Annotated

from pydantic import Field

MOST = 1000
"""The most stages, blocks of a stage, and the like; the deepest networks have some hundreds of layers."""

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Blocks = Annotated[tuple[Annotated[tuple[Count, ...], Field(max_length=MOST)], ...], Field(max_length=MOST)]
"""For each stage, the positions of the blocks that are kept; empty for all blocks of all stages."""
