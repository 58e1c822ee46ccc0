"""What users import in their own tests: an ephemeral cluster."""
