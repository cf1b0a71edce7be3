from __future__ import annotations

import pytest

from dpserver.monitor import Reporter
from tests.monitor.doubles import Job, Watched

JOB = Job(1)


class Daemon(Watched):
    """Sleeps and reports as the daemon does: never longer than the reporter wants, and asks it after each turn."""

    def __init__(self, interval: float | None = 60.0) -> None:
        super().__init__()
        self.reporter = Reporter(self.meter, interval, self.clock)
        self.connect("unix:a", 1)

    def work(self, seconds: float, pace: float = 0.1) -> None:
        """One structure after the other; half of the time is spent computing."""
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            self.reporter.note_work()
            self.evaluate([JOB], pace / 2)
            self.reporter.report()
            self.sleep(pace / 2)

    def sleep(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            delay = self.reporter.delay()
            self.wait(min(end - self.clock.now, seconds if delay is None else delay))
            self.reporter.report()


@pytest.fixture
def lines(caplog):
    caplog.set_level("INFO", "dpserver.monitor")

    def take() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return take


def test_lines_come_soon_and_then_at_a_steady_pace(lines):
    daemon = Daemon(interval=60.0)
    counts = []
    for _ in range(200):
        daemon.work(1.0)
        counts.append(len(lines()))
    assert [k + 1 for k, count in enumerate(counts) if count] == pytest.approx([1, 10, 70, 130, 190], abs=1)
    assert max(counts) == 1


def test_what_a_line_says(lines, caplog):
    Daemon().work(1.2)
    figures = caplog.records[0].figures  # for logs in JSON
    assert figures["evaluations_per_second"] == pytest.approx(10, rel=0.1)
    assert figures["computing"] == pytest.approx(0.5, abs=0.03)
    (line,) = lines()
    assert "10.5 batches/s of 1 structures, 1 at most; 10.5 evaluations/s, 260 µs/atom" in line
    assert "48% waiting for the peer, 52% computing, 0% on the wire" in line


def test_never_more_than_one_a_second(lines):
    daemon = Daemon(interval=1.0)
    for _ in range(50):
        daemon.work(0.2)
        daemon.sleep(0.3)
        daemon.meter.closed(1)
        daemon.reporter.report()
        daemon.connect("unix:a", 1)
    assert 20 <= len(lines()) <= 25


def test_silence_while_nothing_is_evaluated(lines):
    daemon = Daemon()
    assert daemon.reporter.delay() is None
    daemon.sleep(1000.0)
    assert lines() == []
    daemon.work(2.0)
    daemon.sleep(1000.0)
    assert len(lines()) == 1 + 1  # the rest of the work at the next time, and then nothing to wake up for
    assert daemon.reporter.delay() is None


def test_after_a_pause_the_work_begins_anew(lines, caplog):
    daemon = Daemon()
    daemon.work(30.0)
    daemon.sleep(3600.0)
    lines()
    daemon.work(1.2)
    (record,) = caplog.records
    assert record.figures["computing"] == pytest.approx(0.5, abs=0.05)  # and nothing of the hour before


def test_a_line_when_the_last_peer_has_left(lines):
    daemon = Daemon()
    daemon.work(5.0)
    assert len(lines()) == 1
    daemon.meter.closed(1)
    daemon.reporter.report()
    (line,) = lines()
    assert "49% computing" in line
    daemon.sleep(1000.0)
    assert lines() == []


def test_an_evaluation_that_takes_longer_than_the_first_line(lines):
    daemon = Daemon()
    daemon.reporter.note_work()
    daemon.meter.asked(JOB)
    daemon.meter.started([JOB])
    daemon.sleep(30.0)
    assert lines() == []
    daemon.meter.evaluated(30.0)
    daemon.meter.replied(JOB, 1, 1)
    daemon.sleep(2.0)
    (line,) = lines()
    assert "0.0333 batches/s" in line or "0.0323 batches/s" in line


def test_work_that_comes_to_nothing_does_not_keep_it_awake(lines):
    daemon = Daemon()
    daemon.reporter.note_work()
    daemon.meter.asked(JOB)
    daemon.meter.closed(1)
    daemon.sleep(10.0)
    assert lines() == []
    assert daemon.reporter.delay() is None


def test_advice_comes_even_where_no_lines_are_wanted(lines, monkeypatch):
    daemon = Daemon(interval=None)
    monkeypatch.setattr(daemon.meter, "take_advice", lambda: ["do this"])
    daemon.work(1.2)
    assert lines() == ["do this"]
