"""From a run to a file that runs elsewhere."""
