"""The laboratory (deploy/lab), with few connections: the same scenarios as ./run lab --check."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

from harness import netns, settings, wait

LAB = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "lab", "lab.py")


def argv(*words):
    return [sys.executable, LAB, "--bin", settings.bin_dir, *words]


class Laboratory(unittest.TestCase):
    def check(self, *words):
        done = subprocess.run(argv("--check", *words, "--json", "--bytes-each", "200000"),
                              capture_output=True, text=True, timeout=200, check=False)
        self.assertEqual(done.returncode, 0, done.stderr[-6000:])
        result = json.loads(done.stdout)
        self.assertEqual([one["passed"] for one in result["scenarios"]], [True])
        return result["scenarios"][0]["figures"]

    def test_every_way_of_forwarding_carries_verified_bytes_over_links_of_several_mtus(self):
        figures = self.check("forwarding", "--connections", "100", "--fabric", "tcp")
        self.assertEqual((figures["ways"], figures["families"]), (5, 2))
        self.assertGreater(figures["told_too_big"], 0)

    def test_proxies_and_network_nodes_come_and_go_without_a_broken_connection(self):
        figures = self.check("connections", "--connections", "200")
        self.assertEqual(figures["broken"], 0)
        self.assertGreater(figures["ended_with_proxy"], 0)

    def test_every_node_is_exchanged_by_the_upgrade_procedure_without_a_broken_connection(self):
        figures = self.check("upgrade", "--connections", "200")
        self.assertEqual(figures["broken"], 0)
        self.assertGreater(figures["verified"], 0)

    def test_numbers_that_make_no_sense_are_refused_before_anything_is_built(self):
        for words in (("--outage", "nan"), ("--outage", "-1"), ("--bytes-each", "0"),
                      ("--connections", "9")):
            done = subprocess.run(argv("--check", "forwarding", *words), capture_output=True, text=True,
                                  timeout=60, check=False)
            self.assertEqual((done.returncode, done.stdout), (2, ""), words)
            self.assertIn(words[0] + " is", done.stderr)

    def test_ctrl_c_while_it_is_built_leaves_nothing(self):
        """At its worst: a namespace is there and nobody has heard of it yet."""
        with tempfile.TemporaryDirectory(prefix="sane2e-") as folder:
            with open(os.path.join(folder, "ip"), "w") as file:
                file.write("#!/bin/sh\n"
                           f"{shutil.which('ip')} \"$@\" || exit\n"
                           "case \"$*\" in \"netns add \"*-c4) kill -INT $PPID; exec sleep 60 ;; esac\n")
            os.chmod(file.name, 0o755)
            environment = {**os.environ, "PATH": folder + os.pathsep + os.environ["PATH"]}
            with subprocess.Popen(argv(), stdout=subprocess.PIPE, text=True,
                                  env=environment) as lab:
                self.assertIn("removing the laboratory", lab.communicate(timeout=60)[0])
        self.assertEqual(lab.returncode, 0)
        self.assertNotIn(f"sanlab-{lab.pid}-", netns.ip("netns", "list").stdout)

    def test_a_command_runs_at_a_client_and_everything_is_removed_also_after_a_signal(self):
        done = subprocess.run(argv("--", "sh", "-c", "sanctl status && exit 7"), capture_output=True,
                              text=True, timeout=100, check=False)
        self.assertEqual(done.returncode, 7, done.stderr)
        self.assertIn("3 running", done.stdout)
        with subprocess.Popen(argv(), stdout=subprocess.PIPE, text=True) as lab:
            for line in lab.stdout:
                if "until Ctrl-C" in line:
                    break
            mine = f"sanlab-{lab.pid}-"
            self.assertIn(mine + "c1", netns.ip("netns", "list").stdout)
            lab.send_signal(signal.SIGTERM)
            self.assertEqual(lab.wait(30), 143)
        wait.until(lambda: mine not in netns.ip("netns", "list").stdout, "its namespaces are gone")
        self.assertFalse([name for name in os.listdir("/tmp") if name.startswith(mine)])
