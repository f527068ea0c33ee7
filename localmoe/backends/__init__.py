"""Engines: what computes. Each one implements `backends.base.Engine`."""
