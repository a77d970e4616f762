"""A node as a process: its options, its parts, its services, and its end."""
