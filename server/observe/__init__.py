"""What a coordinator tells of itself: logs, metrics and traces."""
