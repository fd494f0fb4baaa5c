"""What a run is, simulated or real: the experiment, its data, and what comes of it."""
