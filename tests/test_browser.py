"""Tests of pages on a machine without a browser: skipped by users, failed in continuous integration."""

import shutil
from pathlib import Path

import browser
import pytest

RUN = Path(__file__).parents[1] / ".ci/run"


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(browser.REQUIRED, raising=False)


def test_without_a_browser_tests_of_pages_are_skipped_with_the_remedy(no_browser: None) -> None:
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        browser.chromium()


def test_continuous_integration_fails_without_a_browser(no_browser: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before_stages = RUN.read_text().partition("for stage in")[0]
    assert f"\nexport {browser.REQUIRED}=1" in before_stages
    monkeypatch.setenv(browser.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        browser.chromium()


@pytest.mark.parametrize("name", browser.NAMES)
def test_any_browser_of_the_kind_is_found(no_browser: None, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch(0o755)
    assert browser.chromium() == shutil.which(name) == str(tmp_path / name)
