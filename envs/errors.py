"""The one error that is the user's to mend."""


class UserError(ValueError):
    """A mistake the user can mend: the scripts print its text alone, without a traceback, and exit 2."""
