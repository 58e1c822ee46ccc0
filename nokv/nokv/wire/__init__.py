"""Encoding of commands, results, reads and RPC; framing. See DESIGN.md."""
