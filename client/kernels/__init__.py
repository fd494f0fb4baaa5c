"""Kernels of our own for processors: C++ sources, their loading, and a PyTorch reference beside each."""
