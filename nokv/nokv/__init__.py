"""NoKV: a replicated metadata control plane with immutable bodies in object storage."""
