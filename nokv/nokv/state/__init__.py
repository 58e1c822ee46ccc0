"""The deterministic state machine: a pure function of (state, log entry)."""
