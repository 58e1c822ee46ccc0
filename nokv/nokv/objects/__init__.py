"""File bodies: the object-store port, the block layout, upload, read plans and the block cache.

Everything here runs in clients and in a node's worker process, never in a replica's process. It
imports on every platform, and loads an S3 library only when an S3 store is used.
"""
