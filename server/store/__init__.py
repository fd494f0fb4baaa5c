"""What a coordinator must not lose: its folder, its database, and the journal of a run."""
