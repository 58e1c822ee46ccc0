"""`make demo`: a three-node cluster takes a real tree and a checkpoint through two leader kills."""
