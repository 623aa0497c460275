"""Why a request to the live page is not answered, with the status that says so."""

from __future__ import annotations


class BadRequest(Exception):
    """A request that is not answered; the text says why, `status` is that of HTTP."""

    def __init__(self, text: str, status: int = 400) -> None:
        self.text = text
        self.status = status
        super().__init__(text)
