"""The one family of errors that gradwell raises: what, what was found, what to do.

Floor 0: imports nothing of ours.
"""


class GradwellError(Exception):
    """Base of every error that is ours; its text is one clear sentence for the person at the terminal."""


class UsageError(GradwellError):
    """The command or call cannot be understood as it was written."""


class UnreadableInput(GradwellError):
    """A file, folder or target that was named is missing, torn, or not what it should be."""


class UnknownId(GradwellError):
    """An id that is on no shelf."""


class ShelfError(GradwellError):
    """A file on a shelf breaks the shelf's rules: a programmer's error, found by the tests."""


class NotMeasurable(GradwellError):
    """The measurement cannot be taken on this model or batch; the text says why and what to do."""


class Refused(GradwellError):
    """A change to a training setup that would be wrong on this model; the text says why and what to do."""
