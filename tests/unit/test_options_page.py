"""docs/options.md says what the options are."""

from __future__ import annotations

from tests.options_page import PAGE, page


def test_the_page_is_that_of_the_code() -> None:
    """A field that is added, or said anew, is on the page."""
    assert PAGE.read_text() == page(), "run: python -m tests.options_page"
