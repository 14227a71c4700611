"""Pure functions from measured numbers to quantities: no torch, no hooks."""
