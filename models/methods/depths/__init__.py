"""Methods whose sub-models are shallower."""
