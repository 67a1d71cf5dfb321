"""What surrounds every request: the gate, failures, connections, memory."""
