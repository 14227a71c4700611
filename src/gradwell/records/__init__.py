"""The nouns of gradwell: a run, a verdict, a small net as data, and their plain text and JSON form.

Floor 0: needs neither torch nor numpy.
"""
