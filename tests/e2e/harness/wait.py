"""Waiting for conditions. The only sleep of these tests is the pause between two looks."""

import time

from . import settings


class NotReached(AssertionError):
    pass


def until(condition, what, timeout_s=20.0, pause_s=0.02):
    """Looks at `condition` until it is true, and returns its value."""
    timeout_s *= settings.slowness
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise NotReached(f"not reached within {timeout_s:g} s: {what() if callable(what) else what}")
        time.sleep(pause_s)


def stays(condition, what, duration_s=0.5, pause_s=0.05):
    """The condition holds at every look during the time: for things that must not happen."""
    deadline = time.monotonic() + duration_s
    while time.monotonic() < deadline:
        if not condition():
            raise AssertionError(f"did not stay so: {what}")
        time.sleep(pause_s)
