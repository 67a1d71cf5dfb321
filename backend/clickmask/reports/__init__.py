"""Reports that users ask for."""
