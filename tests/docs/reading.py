"""A document as a test reads it: its inline code, its code blocks, and the line that each stands on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

Line = int
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)((?:    \S[^\n]*\n)+)")
_COMMENT = re.compile(r"(?:^|\s)##?@? (.*)$")


@dataclass(frozen=True)
class Document:
    """A page of Markdown (`path` is relative to the repository), or a Makefile, of which only the comments count."""

    path: str
    text: str

    @classmethod
    def makefile(cls, path: str, text: str) -> "Document":
        """The comments of a Makefile, each on its line."""
        found = (_COMMENT.search(line) for line in text.split("\n"))
        return cls(path, "\n".join(match[1] if match else "" for match in found))

    def find(self, pattern: str) -> Iterator[tuple[Line, str]]:
        """Every match of a pattern anywhere in the text."""
        for match in re.finditer(pattern, self.text):
            yield self._line(match.start()), match[0]

    def blocks(self, language: str) -> Iterator[tuple[Line, str]]:
        """The fenced blocks of a language."""
        for match in _FENCE.finditer(self.text):
            if match[1] == language:
                yield self._line(match.start(2)), match[2]

    def inline(self) -> Iterator[tuple[Line, str]]:
        """Inline code, on one line."""
        prose = _INDENTED.sub(_blank, _FENCE.sub(_blank, self.text))
        for match in _INLINE.finditer(prose):
            yield self._line(match.start()), " ".join(match[1].split())

    def code(self) -> Iterator[tuple[Line, str]]:
        """Inline code, and every line of a block; lines that are continued by a backslash are one."""
        yield from self.inline()
        for pattern, group in ((_FENCE, 2), (_INDENTED, 1)):
            for match in pattern.finditer(self.text):
                joined = re.sub(r"\\\n *", lambda broken: " " * len(broken[0]), match[group])
                position = match.start(group)
                for line in joined.split("\n"):
                    yield self._line(position), line
                    position += len(line) + 1

    def _line(self, position: int) -> Line:
        return self.text.count("\n", 0, position) + 1


def _blank(match: re.Match[str]) -> str:
    """As many lines, with nothing on them."""
    return "\n" * match[0].count("\n")
