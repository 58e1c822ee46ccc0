"""The client: routing, sessions, files, publish; and a thin synchronous facade. See DESIGN.md."""
