"""The `diastole` command; one file a sub-command."""
