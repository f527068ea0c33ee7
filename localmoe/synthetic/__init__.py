"""Checkpoints in the true shape of published models, without their weights: to plan and to try."""
