"""What holds clients and writes to them: subscriptions, the hub and its thread. No framework."""
