"""The one error that the user can fix."""


class UserError(ValueError):
    """A mistake that the user can fix: the scripts print its text alone, without a traceback, and exit 2."""
