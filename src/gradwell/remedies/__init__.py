"""The shelf of remedies: one file, one change to a training, one page with the lines to paste.

A file `reinit.py` holds `reinit(case, *, <settings>) -> Prescription | None` (None: it does not fit this case) and
`TREATS`, the symptoms and causes it is for. Its page has the headings `What it does`, `In your code`, `What it costs`,
`When it fails`, `Source`. Needs no torch: the code is text.
"""
