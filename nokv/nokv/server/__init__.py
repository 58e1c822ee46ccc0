"""The node: supervisor, shard processes, the worker process, RPC and HTTP."""
