"""What methods share: naming coordinates, nested networks, budgets of tiers."""
