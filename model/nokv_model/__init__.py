"""The reference model, the history recorder and the checkers."""
