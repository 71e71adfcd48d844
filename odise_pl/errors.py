"""The base of all errors that a user can put right."""


class UserError(Exception):
    """Its message says what is wrong and the way out; no traceback is needed to act on it."""


class SettingError(UserError, ValueError):
    """A configuration value is out of range; the message names the option."""
