"""What moved during a step, and why."""
