"""Answers what a cache would have done with a recorded trace. Knows no engine."""
