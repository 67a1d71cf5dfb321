"""Accepted labels on their way in: from a tool's events and pulls to the store."""
