"""What nodes and gateways share to start, to be watched, and to stop."""
