"""Stitchable networks: anchors, stitches between them, routes through both."""
