"""The part of a page that a script writes, between two marks; the rest of the page is written by hand."""


def rewrite(page: str, begin: str, end: str, text: str) -> str:
    """The page with the text between its marks replaced.

    Args:
        page: its whole text.
        begin: the line before the part, with its newline.
        end: the line after the part, with its newline; the first one after `begin` counts.
        text: the new part, which gets an empty line before and after it.

    Raises:
        ValueError: `begin` is not there, or is there twice.
        IndexError: `end` is not there.
    """
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"
