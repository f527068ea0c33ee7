"""Model types of one kind per module: what they have in common is what their attention is."""
