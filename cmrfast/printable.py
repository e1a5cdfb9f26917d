"""Text from elsewhere made safe for a terminal."""


def printable(text: object) -> str:
    """Text with every character that is not printable as an escape sequence such as ``\\x1b``.

    File names may hold control characters, which a terminal would obey, line breaks, marks that
    turn the direction of writing, and bytes that are not text.

    Example:
        >>> print(printable("scan\\x1b[2J\\u202e.nii"))
        scan\\x1b[2J\\u202e.nii
    """
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in str(text))
