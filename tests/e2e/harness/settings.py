"""What run.py was told; set once before the first test."""

import os

bin_dir = ""
log_dir = ""
rogue = None
quick = False
# The guest's processor is emulated: everything takes longer there.
in_guest = bool(os.environ.get("SANPROXY_VM"))
slowness = 6 if in_guest else 1
test_timeout_s = 300 * slowness
