"""Methods whose sub-models are narrower."""
