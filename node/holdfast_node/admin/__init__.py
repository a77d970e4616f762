"""The requests of operators about the objects of a node."""
