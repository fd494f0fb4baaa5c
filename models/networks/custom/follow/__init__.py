"""Following a module's forward pass: which channels of one tensor are those of another, operator by operator."""
