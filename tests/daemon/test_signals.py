import os
import signal

import pytest

from dpserver.daemon.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_would_end_the_process(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    asked = []
    with stop_on_signals(lambda: asked.append(1)):
        os.kill(os.getpid(), number)
        assert asked == [1]
        assert {signal.getsignal(n) for n in before} == {signal.SIG_DFL}
    assert {n: signal.getsignal(n) for n in before} == before
