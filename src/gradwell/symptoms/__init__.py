"""The shelf of symptoms: one file, one detector, one id; the docstring is the page.

A detector is `def <id>(run, *, thresholds...) -> Iterator[Finding]`. It reads records only. What it cannot measure it
says by raising `NotMeasurable`: not measured is not healthy. Thresholds are keyword-only; each default cites its
calibration in `docs/calibration.md`.

Facts in each file:

    SICK        nets (`NetConfig`) on which it must fire with its default thresholds
    HEALTHY     nets on which it must be silent
    STEPS       of a symptom that reads a training: how many steps these nets are trained for its test
    ORDER       place among findings of equal severity: 0 what causes others, 9 what is usually their consequence

Headings of each page: What it does to training, How it is measured, When it is no problem, What helps first, Source.
"""
