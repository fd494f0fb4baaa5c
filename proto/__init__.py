"""The wire: the contract in `diastole/v1/*.proto`, tensor payloads, and the root of the error tree."""
