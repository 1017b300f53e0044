"""The guests that tests share, and the cases to derive from.

    class Something(GuestCase):
        def test_what_it_does(self):
            result = self.guest.run("ibv_devices", timeout_s=30)    # status, stdout, stderr

A guest boots when the first test asks for one. If a test kills it, the next one gets a new one.
The single guest and the pair do not run at the same time: two cores are not many.
"""

import sys
import unittest

import guest
import qemu
import settings

_running = {}   # "single" or "pair" -> Guest or Pair
_cannot = []    # why this machine cannot run guests, once that is known
_can = []       # not empty once one has run


def say(text):
    if settings.verbose:
        print(f"     | vm: {text}", file=sys.stderr, flush=True)


def _alive(kind):
    machine = _running.get(kind)
    members = machine.guests if kind == "pair" and machine else [machine]
    return machine is not None and all(member.alive() for member in members)


def shared(kind):
    """The booted Guest ("single") or Pair ("pair"). Skips the test where there can be none."""
    if _cannot:
        raise unittest.SkipTest(_cannot[0])
    if not _alive(kind):
        close_all()
        try:
            machine = guest.Guest(say=say) if kind == "single" else guest.Pair(say=say)
            _running[kind] = machine
            machine.boot()
        except qemu.CannotRun as error:
            close_all()
            _cannot.append("no guest: " + str(error).replace("\n", " "))
            raise unittest.SkipTest(_cannot[0]) from error
        _can.append(True)
    return _running[kind]


def require():
    """For tests that start their own: skips where there can be none, and leaves none running."""
    if not _can:
        shared("single")
    close_all()


def close_all():
    for machine in _running.values():
        machine.close()
    _running.clear()


class GuestCase(unittest.TestCase):
    """Tests in one guest: `self.guest`."""

    def setUp(self):
        self.guest = shared("single")

    def check(self, command, timeout_s=60, **options):
        """Runs a command that has to succeed; returns what it printed as text."""
        return check(self, self.guest, command, timeout_s, **options)


class PairCase(unittest.TestCase):
    """Tests in two guests on one network: `self.pair.a` and `self.pair.b`."""

    def setUp(self):
        self.pair = shared("pair")


def check(test, where, command, timeout_s=60, **options):
    result = where.run(command, timeout_s=timeout_s, **options)
    test.assertEqual(result.status, 0, f"{command!r} printed:\n" + text_of(result))
    return result.stdout.decode(errors="replace")


def text_of(result):
    return (result.stdout + result.stderr).decode(errors="replace")
