"""Reads the paths that users write."""

import os
import re
from pathlib import Path

# `gs://bucket/run`, also as pathlib shortens it to `gs:/bucket/run`, and rsync's `host:/run`.
_REMOTE = re.compile(r"[\w@+.-]+:/")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^}]*)\})")
_QUOTED = re.compile(r"""^['‘’“”„]|["“”„]|/'|['‘’]$""")
_COMMENT = re.compile(r"\s(#|//)")


def expanded(path: str | os.PathLike, *, remote: bool = False) -> str:
    """Returns a path with `~` and environment variables expanded, as a shell would have done.

    No shell reads flag files, notebooks and the right side of a flag. Quotes and comments, which a shell would remove, are
    refused, since they would become part of the name.

    Args:
      path: A file or folder. An absolute `pathlib.Path` is returned as it is: a program has computed it.
      remote: Whether a path on the network (`gs://bucket/folder`) is returned as it is, rather than refused.

    Raises:
      ValueError: If the path is not usable as written; the message is one line that says what to do.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is bytes: give a string")
    if isinstance(path, os.PathLike) and os.path.isabs(text):
        return text
    if not text.strip():
        raise ValueError("the path is empty: name a file or folder, and see whether a variable of the shell is not set")
    if text != text.strip():
        raise ValueError(f"{text!r} has blanks around it: leave them out")
    if "\0" in text or _has_surrogates(text):
        raise ValueError(f"{text!r} is not the name of a file or folder: write it in UTF-8, without NUL")
    if _QUOTED.search(text):
        raise ValueError(f"{text!r} has quotes: leave them out, blanks need none here")
    if _COMMENT.search(text):
        raise ValueError(f"{text!r} has a comment: write the comment on a line of its own")
    if "$(" in text or "`" in text:
        raise ValueError(f"{text!r} has a command, which only a shell runs: write its result")
    text = os.path.expanduser(_VARIABLE.sub(_value, text))
    if text.startswith("~"):
        user, folder = text[1:].partition("/")[0], f"./{text}"
        raise ValueError(f"{text!r}: there is no user {user!r} here; a folder's name is {folder!r}")
    if _REMOTE.match(text) and not (remote and "://" in text):
        raise ValueError(f"{text!r} is on the network: give a local file or folder, or where it is mounted")
    return text


def local(path: str | os.PathLike) -> Path:
    """Returns :func:`expanded` of a path on this machine."""
    return Path(expanded(path))


def user_cache() -> Path:
    """Returns the folder for files that can be made again: `ojax` in the user's cache folder.

    Raises:
      ValueError: If there is no home folder, or `XDG_CACHE_HOME` cannot mean a folder.
    """
    return local(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ojax"


def _value(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    if not os.environ.get(name):
        raise ValueError(f"{match.string!r}: the environment variable {name!r} is not set")
    return os.environ[name]


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)
