"""The hub is asked once whether it is there; where it isn't, nothing waits for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from harness.core import hub
from harness.core.errors import UserError
from harness.models.source import check_model

Answer = Callable[[], None]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], list[str]]]:
    """A network in which `answer` is what happens at each request. Returns the addresses that were asked."""
    for name in hub.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.05)

    def network(answer: Answer) -> list[str]:
        asked: list[str] = []

        class Session:
            def head(self, url: str, **_: Any) -> None:
                asked.append(url)
                answer()

        monkeypatch.setattr(huggingface_hub, "get_session", Session)
        hub._silence.cache_clear()
        return asked

    yield network
    hub._silence.cache_clear()


def no_network() -> None:
    raise OSError("Name or service not known\nand more")


def test_an_answer_leaves_the_libraries_as_they_are(answers: Callable[[Answer], list[str]]) -> None:
    asked = answers(lambda: None)
    assert hub.find_hub() is None and hub.find_hub() is None
    assert asked == [constants.ENDPOINT] and not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("answer", "why"), [(no_network, "Name or service not known"), (lambda: time.sleep(0.5), "no answer in 0.05 s")]
)
def test_without_an_answer_the_libraries_are_told(answers: Callable[[Answer], list[str]], answer: Answer, why: str) -> None:
    asked = answers(answer)
    assert hub.find_hub() == why and constants.is_offline_mode() and os.environ["HF_HUB_OFFLINE"] == "1"
    assert hub.find_hub() == "HF_HUB_OFFLINE is set" and len(asked) == 1, "no second request"


def test_a_model_that_is_nowhere_is_one_line(answers: Callable[[Answer], list[str]]) -> None:
    answers(no_network)
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_model("no-such-owner/no-such-model")
    assert "there is no such folder" in str(caught.value) and "can't be reached (Name or service not known)" in str(
        caught.value
    )
    assert time.monotonic() - began < 2 and "\n" not in str(caught.value)
