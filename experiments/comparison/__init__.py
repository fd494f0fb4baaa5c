"""Methods side by side: what runs came to, and the picture of it."""
