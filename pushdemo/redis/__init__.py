"""Topics and memorized values that several nodes share at one Redis. Alone imports the redis package."""
