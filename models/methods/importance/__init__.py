"""Methods whose sub-models are the most important scalars."""
