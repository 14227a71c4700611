"""Paired arms: the same training with and without a change, each at its own learning rate, judged on fresh seeds."""
