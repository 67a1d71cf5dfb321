"""Training of networks on labels. Needs torch, and runs in a process of its own."""
