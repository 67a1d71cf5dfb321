"""clickmask's own HTTP API, under /v1/."""
