"""A file that cannot be compiled."""
values = [1, 2
more = 3
