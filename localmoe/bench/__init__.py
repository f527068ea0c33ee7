"""Measures decode speed against what the machine allows, and against a peer. Prints nothing."""
