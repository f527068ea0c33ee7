"""Templates, sampling and sessions: everything between text and an engine."""
