"""Numbers that users ask for."""
