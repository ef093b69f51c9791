"""Long work beside a page: results, errors, stops, order; with and without a running loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("ipywidgets")

from workbench.errors import OptionError  # noqa: E402
from workbench.progress import track  # noqa: E402
from workbench.widgets.jobs import Job, Jobs  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_page")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """In a thread of its own: another loop may be running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class Log:
    """What a bench was told."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.errors: list[tuple[str, str]] = []
        self.jobs = Jobs(lambda job: None)

    def start(self, work: Any, **options: Any) -> bool:
        return self.jobs.start(
            options.pop("what", "work"),
            work,
            self.values.append,
            failed=lambda text, detail: self.errors.append((text, detail)),
            **options,
        )


def slow(job: Job) -> int:
    for _ in track(range(2000), "steps"):
        time.sleep(0.005)
    return 1


def test_without_a_loop_the_call_waits():
    log = Log()
    assert log.start(lambda job: threading.get_ident())
    assert log.values[0] != threading.get_ident() and log.jobs.current is None
    log.start(lambda job: threading.get_ident())
    assert log.values[0] == log.values[1], "all work belongs in one thread"


def test_an_expected_error_is_a_sentence_and_an_unexpected_one_has_its_trace():
    log = Log()

    def refuse(job: Job) -> None:
        raise OptionError("say it like this.")

    log.start(refuse)
    log.start(lambda job: 1 / 0)
    assert log.errors[0] == ("say it like this.", "")
    text, detail = log.errors[1]
    assert "ZeroDivisionError" in text and "Traceback" in detail
    assert log.values == [] and log.jobs.current is None


def test_an_error_in_showing_is_told_as_well():
    errors: list[str] = []
    jobs = Jobs(lambda job: None)
    jobs.start("work", lambda job: 1, lambda value: value / 0, failed=lambda t, d: errors.append(t))
    assert "ZeroDivisionError" in errors[0]


def test_stop_ends_the_work_at_its_next_report():
    log = Log()
    began = time.monotonic()
    log.start(slow, tick=log.jobs.stop)
    assert time.monotonic() - began < 5
    assert log.values == [] and "was stopped" in log.errors[0][0]
    log.start(lambda job: 2)
    assert log.values == [2], "a stop ends one job, not the next"


def test_progress_is_seen_while_it_runs():
    seen = []
    log = Log()
    log.start(slow, tick=lambda: (seen.append(log.jobs.current.done), log.jobs.stop()))
    assert log.jobs.current is None and seen[0] > 0


def test_a_tick_that_fails_does_not_end_the_work():
    log = Log()

    def short(job: Job) -> int:
        time.sleep(0.5)
        return 3

    log.start(short, tick=lambda: 1 / 0)
    assert log.values == [3] and "ZeroDivisionError" in log.errors[0][0]


def test_with_a_loop_the_page_stays_alive_and_a_second_job_is_refused():
    async def page() -> None:
        log = Log()
        assert log.start(slow, what="long work")
        assert log.values == [] and log.jobs.current is not None
        await asyncio.sleep(0.05)
        assert not log.start(lambda job: 5)
        assert "Busy: long work" in log.errors[0][0]
        log.jobs.stop()
        await asyncio.wait_for(log.jobs.finished(), 5)
        assert log.jobs.current is None and "was stopped" in log.errors[1][0]

    run(page())


def test_jobs_wait_for_a_light_one_and_none_is_lost() -> None:
    async def page() -> None:
        log = Log()
        log.start(lambda job: time.sleep(0.3) or "light", light=True)
        assert log.start(lambda job: time.sleep(0.3) or "first", what="first")
        assert log.start(lambda job: "second", what="second", light=True)
        await asyncio.wait_for(log.jobs.finished(), 5)
        assert log.values == ["light", "first", "second"] and log.errors == []

    run(page())


def test_a_button_pressed_twice_while_waiting_is_pressed_once_unless_it_repeats() -> None:
    async def page() -> None:
        log = Log()
        log.start(lambda job: time.sleep(0.3), light=True)
        for _ in range(2):
            log.start(lambda job: "stream", what="stream")
            log.start(lambda job: "undo", what="undo", light=True, repeats=True)
        await asyncio.wait_for(log.jobs.finished(), 5)
        assert log.values == [None, "stream", "undo", "undo"] and log.errors == []

    run(page())


def test_an_interrupt_ends_the_work_and_leaves_the_bench_usable() -> None:
    log = Log()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log.start(slow, tick=interrupted)
    assert log.jobs.current is None
    log.start(lambda job: "next")
    assert log.values == ["next"]


def test_a_progress_line_that_fails_does_not_stop_everything() -> None:
    errors: list[str] = []
    jobs = Jobs(lambda job: 1 / 0)
    values: list[int] = []
    jobs.start("work", lambda job: 1, values.append, failed=lambda t, d: errors.append(t))
    assert values == [1] and "ZeroDivisionError" in errors[0] and jobs.current is None


def test_what_a_result_starts_comes_after_what_was_waiting() -> None:
    async def page() -> None:
        order: list[str] = []
        jobs = Jobs(lambda job: None)

        def start(name: str, then: Any = lambda: None) -> None:
            jobs.start(
                name,
                lambda job: time.sleep(0.05),
                lambda _: (order.append(name), then()),
                failed=lambda text, detail: order.append(text),
                light=True,
            )

        start("one", lambda: start("three"))
        start("two")
        await asyncio.wait_for(jobs.finished(), 5)
        assert order == ["one", "two", "three"]

    run(page())
