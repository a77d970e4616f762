"""Holdfast in web servers and workers. docs/web-servers.md explains each example."""
