"""What fsspec reaches: object stores, other machines' disks, mounted folders."""

from __future__ import annotations

from typing import Any

from pipeline.errors import UserError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""This package's extras that bring what a URL's scheme needs."""


def is_url(text: str) -> bool:
    """Whether this names something by where it lies on a network or in a store."""
    return "://" in text


def open_store(url: str) -> tuple[Any, str]:
    """The file system that a URL is of, and the path on it.

    Raises:
        UserError: there is none, or a package is missing that it needs.
    """
    import fsspec  # noqa: PLC0415 (few runs need it)

    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        remedy = f"pip install 'localpipe[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
        raise UserError(
            f"{url}: {scheme}:// needs a package that is not installed. Install it with: {remedy}"
        ) from error
    except Exception as error:  # each store has errors of its own
        raise UserError(f"{url}: cannot be reached ({reason(error)}).") from error
    return files, str(root)


def reason(error: Exception) -> str:
    """A store's error in a line."""
    return f"{type(error).__name__}: {str(error).strip() or 'it does not say why'}".removesuffix(".")
