"""Turn the texts that came with a picture into one or more captions, or none."""

import re
from collections.abc import Sequence
from urllib.parse import unquote, unquote_plus

POLICIES = ("title", "description", "both", "slip", "as-is", "tokens")
"""title, description: that one alone; both: two captions, of which training draws one each epoch; slip: both,
cleaned as SLIP does (arXiv 2112.12750: no tags, no URLs); as-is: the captions of a list that has its own; tokens: CLIP's token ids,
separated by spaces, which are decoded before anything else sees them."""

_TAGS = re.compile(r"<a.*?>|</?[abi]>")
_URLS = re.compile(r"http\S+|www\S+")


def clean_captions(policy: str, texts: Sequence[str | None]) -> list[str]:
    """The captions of one picture under a policy, with white space collapsed and empty ones left out.

    Args:
        policy: one of POLICIES.
        texts: title and description, percent-encoded as in YFCC100M's metadata; or captions (as-is, tokens).
    """
    if policy in ("as-is", "tokens"):
        captions = [text or "" for text in texts]
    else:
        title, description = ((text or "") for text in (*texts, "", "")[:2])
        chosen = {"title": [title], "description": [description]}.get(policy, [title, description])
        captions = [_slip(text) if policy == "slip" else unquote_plus(text) for text in chosen]
    return [clean for clean in (" ".join(caption.split()) for caption in captions) if clean]


def _slip(text: str) -> str:
    """SLIP decodes before it turns + into space, so an encoded plus becomes a space too."""
    return _URLS.sub("", _TAGS.sub("", unquote(text).replace("+", " ")))
