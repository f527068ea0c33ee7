"""Will it fit, and how fast."""
