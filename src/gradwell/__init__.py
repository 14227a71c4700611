"""gradwell: vanishing and exploding gradients, found, explained and cured."""

__version__ = "0.1.0"
