"""A server that speaks as much of the hub's API as downloads need, and can be told to fail."""

from __future__ import annotations

from hub.server import HubServer, Repository

__all__ = ["HubServer", "Repository"]
