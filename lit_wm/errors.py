"""What a user did that cannot work, said in one line."""

from datamodules.experience import ExperienceError

__all__ = ["ExperienceError", "UserError"]


class UserError(Exception):
    """A mistake on the user's side: one line that names the file or key and says what to do.

    The command line prints it without a traceback and exits with status 2 (``--debug`` shows the traceback).
    """
