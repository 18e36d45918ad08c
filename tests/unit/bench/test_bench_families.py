"""The bench that certifies families: one of them or all, and a page that only all can write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import families
from shoal.errors import UsageError
from shoal.model.families import FAMILIES
from tests.support import certify, family_cases
from tests.support.certify import PROPERTIES
from tests.support.family_cases import CASES


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The bench takes one thread, and leaves it at that."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_one_family_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cases are measured, and no others."""
    monkeypatch.setattr(certify, "PROPERTIES", PROPERTIES[:1])
    result = families.run(family="bloom")
    assert result.keys() & FAMILIES.keys() == {"bloom"}


def test_a_family_that_is_not_there() -> None:
    """Those that there are, are told."""
    with pytest.raises(UsageError, match=r"no family 'lama': choose one of llama, .*falcon"):
        families.run(family="lama")


def test_a_page_has_all_families(tmp_path: Path) -> None:
    """It is not written from one."""
    with pytest.raises(UsageError, match="all families"):
        families.run(tmp_path / "page.md", "bloom")
    assert not list(tmp_path.iterdir())


def test_a_hollow_case_writes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What says too little certifies nothing."""
    case = next(case for case in CASES if case.model_type == "llama" and not case.name)
    monkeypatch.setattr(family_cases, "CASES", (case._replace(fields={"rms_norm_eps": 1e-12}),))
    monkeypatch.setattr(certify, "PROPERTIES", PROPERTIES[:1])
    with pytest.raises(certify.HollowCase, match="norm_eps"):
        families.run(tmp_path / "page.md")
    assert not list(tmp_path.iterdir())
