"""A node as a process: its options, its parts, what it serves, and its end."""
