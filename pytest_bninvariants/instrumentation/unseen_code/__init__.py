"""Tell observers when code runs that cannot be seen: compiled code, and device graphs."""
