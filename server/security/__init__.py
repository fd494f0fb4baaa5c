"""Whom a coordinator knows: its own authority, and the devices that it has enrolled."""
