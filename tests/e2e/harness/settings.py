"""What run.py was told; set once before the first test."""

bin_dir = ""
log_dir = ""
rogue = None
quick = False
test_timeout_s = 300
