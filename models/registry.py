"""Moved to `diastole.proto.registry`."""

from diastole.proto.registry import Registry

__all__ = ["Registry"]
