"""Planted bugs."""
import contextlib
@contextlib.contextmanager
def planted(name):
    yield
