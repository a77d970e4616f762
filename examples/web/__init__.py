"""Holdfast in web servers and workers; docs/guide/web-servers.md tells about each."""
