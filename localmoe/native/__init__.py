"""What is compiled: the callback of single tokens, and the reads and look-ups under it."""
