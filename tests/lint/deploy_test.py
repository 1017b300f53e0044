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
            with tempfile.TemporaryDirectory() as keys, \
                    tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                with open(os.open(os.path.join(keys, "web.key"), os.O_WRONLY | os.O_CREAT,
                                  0o600), "w") as key:
                    key.write("x" * 32)
                file.write(text.replace("/etc/sanproxy/keys", keys))
                file.flush()
                result = subprocess.run([os.path.join(BIN, program), "--check", "--config",
                                         file.name], capture_output=True, text=True, check=False)
            self.assertEqual(result.returncode, 0, f"{name}: {result.stderr}")

    def test_what_a_pod_makes_of_its_template_is_a_configuration_of_its_own(self):
        """Runs the commands of the pods' init containers, with files and addresses of here."""
        made = []
        for path in glob.glob(os.path.join(DEPLOY, "kubernetes", "*.yaml")):
            with open(path) as file:
                objects = list(yaml.safe_load_all(file))
            maps = {one["metadata"]["name"]: one["data"] for one in objects
                    if one["kind"] == "ConfigMap"}
            for one in objects:
                spec = one.get("spec", {}).get("template", {}).get("spec", {})
                for container in spec.get("initContainers", []):
                    volumes = {volume["name"]: volume for volume in spec["volumes"]}
                    made.append(self.run_init(container, maps[volumes["template"]["configMap"]["name"]]))
        self.assertEqual(sorted(made), ["netnode", "proxynode"])

    def run_init(self, container, templates):
        values = {"POD_NAME": "proxy-2", "POD_IP": "10.1.2.3", "NODE_NAME": "host-7"}
        env = {one["name"]: values[one["name"]] for one in container["env"]}
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(os.path.join(folder, "keys"))
            with open(os.open(os.path.join(folder, "keys", "web.key"), os.O_WRONLY | os.O_CREAT,
                              0o600), "w") as file:
                file.write("x" * 32)
            os.mkdir(os.path.join(folder, "template"))
            for name, text in templates.items():
                with open(os.path.join(folder, "template", name), "w") as file:
                    file.write(text.replace("/etc/sanproxy", folder))
            command = []
            for word in container["command"]:
                for name, value in env.items():
                    word = word.replace(f"$({name})", value)
                command.append(word.replace("/template", folder + "/template")
                               .replace("/etc/sanproxy", folder))
            result = subprocess.run(command, env={**os.environ, **env}, capture_output=True,
                                    text=True, check=False)
            self.assertEqual(result.returncode, 0, result.stderr)
            (name,) = templates
            with open(os.path.join(folder, name)) as file:
                text = file.read()
            for placeholder in (*env, "192.0.2.1"):
                self.assertNotIn(placeholder, text)
            for value in env.values():
                self.assertIn(value, text)
            if "POD_NAME" in env:
                self.assertIn("\nid = 3\n", "\n" + text)
            self.check_configurations({name: text})
        return name.partition(".toml")[0]

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
