"""Training of networks on labels. Needs torch and runs in its own process."""
