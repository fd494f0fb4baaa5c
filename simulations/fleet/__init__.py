"""Agents on this host within real limits: between a simulation and the field."""
