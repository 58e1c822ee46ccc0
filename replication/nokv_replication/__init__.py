"""One Raft group: orders opaque bytes, durably."""
