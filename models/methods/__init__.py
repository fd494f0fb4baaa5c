"""The ways of making sub-models, each in a file of its own, all behind the contract of `models.compressor`."""
