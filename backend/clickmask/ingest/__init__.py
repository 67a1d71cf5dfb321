"""The path of accepted labels from a tool's events and pulls into the store."""
