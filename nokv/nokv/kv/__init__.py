"""LMDB under the ordered-KV port, and the state digest."""
