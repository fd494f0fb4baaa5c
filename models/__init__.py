"""What is trained: networks, sub-model specs, methods and costs. Pure torch; no files, no network."""
