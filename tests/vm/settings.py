"""What run.py was told; set once before the first test."""

build_dir = ""
test_ids = set()    # of the tests that will run
verbose = False
test_timeout_s = 300
