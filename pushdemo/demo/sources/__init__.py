"""What the demo application shows: each module makes one kind of value, and knows nothing of HTTP."""
