"""Start-up, monitoring and shutdown, as nodes and gateways share them."""
