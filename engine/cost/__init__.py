"""What a network costs, by arithmetic alone: operations, bytes, bounds of time."""
