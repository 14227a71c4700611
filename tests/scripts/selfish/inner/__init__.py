"""Holds the worker."""
