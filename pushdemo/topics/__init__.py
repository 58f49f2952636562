"""Topics and their messages, and what makes them. Standard library alone; no I/O."""
