"""The shelf of experiments: one file, one function, one id; the docstring is the page.

Each function takes an `Ask` (`gradwell.lab.experiment`) and gives an `Outcome`. Optional in a file: `OPTIONS`, what it
takes of ("depth", "seeds", "epochs"). Files whose name starts with `_` are no experiments.
"""
