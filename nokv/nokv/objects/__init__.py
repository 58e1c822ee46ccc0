"""File bodies: the object-store port, block layout, uploads and read plans."""
