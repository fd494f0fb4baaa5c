"""Any module that a user brings: traced, narrowed, and cut at the blocks that the user names."""
