"""One user story a file: check, run, report, demo; `diagnose` is what they share."""
