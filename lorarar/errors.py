"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake the user can mend: its message is one line that names the file or key, what is wrong and what to do.

    Attributes
    ----------
    plain : for who shows errors and does not know this class: the message says all there is to say.
    """

    plain = True
