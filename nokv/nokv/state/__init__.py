"""The deterministic state machine: pure step functions over an ordered KV. See DESIGN.md."""
