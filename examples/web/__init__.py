"""Holdfast in web servers and workers; docs/web-servers.md tells about each."""
