"""Loops in C++: the library, and the exact fold that is in it."""
