"""Flower, met as an engine (`link.py`) and as an ecosystem (`strategy.py`); the only folder that imports flwr."""
