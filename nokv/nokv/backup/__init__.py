"""Backups: made, listed, verified and deleted from outside a cluster's nodes."""
