"""Models trained on a project's labels, without torch."""
