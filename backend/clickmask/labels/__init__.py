"""Labels that annotators drew and accepted, and the rules about them. No I/O."""
