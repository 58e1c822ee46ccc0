"""The pytest plugin: fixtures for people's own tests, loaded by the entry point."""
