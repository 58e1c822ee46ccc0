"""The agent surface: verbs and tool schemas over the client."""
