"""Where a device's examples come from."""
