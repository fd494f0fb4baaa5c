"""From a trained sub-model to a module of ordinary layers that other programs can run."""
