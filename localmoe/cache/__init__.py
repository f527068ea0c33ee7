"""What stays in memory. Knows no engine, no format and no model."""
