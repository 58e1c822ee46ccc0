"""The ordered-KV port on LMDB."""
