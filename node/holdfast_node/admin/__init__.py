"""What operators see and change of the objects of a node."""
