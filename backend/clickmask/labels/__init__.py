"""What annotators drew and accepted, and the rules about it. No I/O."""
