"""Encoding of commands, events and RPC; framing."""
