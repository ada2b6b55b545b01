"""How a guard's failure is raised, shown and counted."""
