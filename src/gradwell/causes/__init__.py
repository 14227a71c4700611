"""The shelf of causes: one file, one hypothesis that claims a share of a finding, one id; the docstring is the page.

A cause is `def <id>(run, finding, step) -> Attribution | None`: None where it does not apply. A share carries signed
decades out of `measure.flow.ledger` of the finding's step (negative shrinks; they add up to the total); a condition
carries none. `diagnose` fills in the index of the finding.

Facts in each file: `EXPLAINS`, the ids of the symptoms that it can explain.

Headings of each page: What it is, How it is measured, What changes it, Source.
"""
