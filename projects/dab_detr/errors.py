"""The exception for what a user can put right."""


class InputError(Exception):
    """A mistake in a file, key or value; the message says which one and what to do."""
