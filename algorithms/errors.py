"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A user's mistake, told in one sentence with the allowed values.

    The command line prints it without a traceback and exits with code 2.
    """


def expected(what: str, value: object, allowed: object) -> str:
    """The sentence for a value outside a fixed set: `unknown penalty 'x': one of a, b, c`."""
    listed = ", ".join(sorted(map(str, allowed)))  # type: ignore[call-overload]
    return f"unknown {what} {value!r}: one of {listed}"
