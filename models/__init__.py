"""What is trained: networks, sub-model specs, compressors and costs. Pure torch; no files, no network."""
