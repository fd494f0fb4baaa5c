"""The device agent: its profile, its link to the coordinator and its training."""
