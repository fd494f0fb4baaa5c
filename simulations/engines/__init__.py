"""The ways of simulating devices."""
