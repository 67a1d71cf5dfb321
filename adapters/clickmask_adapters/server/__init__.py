"""The layer around every request: the gate, failures, connections, memory."""
