"""Holdfast in web servers and workers. docs/guide/web-servers.md explains each example."""
