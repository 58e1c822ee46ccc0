"""Routing, sessions, files, publish and watch."""
