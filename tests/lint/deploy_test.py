"""What is in deploy/ is what the programs, systemd and Kubernetes take."""

import glob
import os
import subprocess
import tempfile
import unittest

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEPLOY = os.path.join(ROOT, "deploy")
BIN = os.path.join(ROOT, "build", "release", "bin")


class Deploy(unittest.TestCase):
    def test_every_sample_configuration_is_one_that_the_program_takes(self):
        for program in ("proxynode", "netnode"):
            found = glob.glob(os.path.join(DEPLOY, "**", program + "*.toml"), recursive=True)
            self.assertGreater(len(found), 1)
            for path in found:
                result = subprocess.run([os.path.join(BIN, program), "--check", "--config", path],
                                        capture_output=True, text=True, check=False)
                self.assertEqual(result.returncode, 0, result.stderr)

    def check_configurations(self, data):
        for name, text in data.items():
            program = name.partition(".toml")[0]
            with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                file.write(text)
                file.flush()
                result = subprocess.run([os.path.join(BIN, program), "--check", "--config",
                                         file.name], capture_output=True, text=True, check=False)
            self.assertEqual(result.returncode, 0, f"{name}: {result.stderr}")

    def test_systemd_takes_every_unit(self):
        with tempfile.TemporaryDirectory() as folder:
            units = []
            for path in glob.glob(os.path.join(DEPLOY, "systemd", "*.service")):
                with open(path) as file:
                    text = file.read()
                # Where things are on this machine; and of what is not here, nothing can be said.
                for program in ("proxynode", "netnode"):
                    text = text.replace("/usr/bin/" + program, os.path.join(BIN, program))
                text = text.replace("/usr/lib/sanproxy", os.path.join(DEPLOY, "bird"))
                text = text.replace("Requires=bird.service\n", "")
                text = text.replace("/usr/sbin/birdc", "/bin/true")
                units.append(os.path.join(folder, os.path.basename(path).replace("@", "@one")))
                with open(units[-1], "w") as file:
                    file.write(text)
            self.assertGreater(len(units), 1)
            result = subprocess.run(["systemd-analyze", "verify", "--man=no", *units],
                                    capture_output=True, text=True, check=False)
            own = [line for line in result.stderr.splitlines()
                   if any(os.path.basename(unit) in line for unit in units)]
            self.assertEqual(own, [])
            self.assertEqual(result.returncode, 0, result.stderr)

    def test_every_manifest_is_yaml_with_what_kubernetes_asks_of_an_object(self):
        found = glob.glob(os.path.join(DEPLOY, "kubernetes", "*.yaml"))
        self.assertGreater(len(found), 1)
        for path in found:
            with open(path) as file:
                for one in yaml.safe_load_all(file):
                    for key in ("apiVersion", "kind", "metadata"):
                        self.assertIn(key, one, path)
                    if one["kind"] == "ConfigMap":
                        self.check_configurations(one["data"])
                    if one["kind"] in ("DaemonSet", "Deployment", "StatefulSet"):
                        labels = one["spec"]["template"]["metadata"]["labels"]
                        self.assertEqual(one["spec"]["selector"]["matchLabels"], labels, path)
                        self.assertTrue(one["spec"]["template"]["spec"]["containers"], path)
