"""What is in deploy/ is what the programs, systemd and Kubernetes take."""

import glob
import os
import re
import subprocess
import tempfile
import unittest

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEPLOY = os.path.join(ROOT, "deploy")
BIN = os.path.join(ROOT, "build", "release", "bin")


def values_of(tree, key):
    """All that stands under this key, wherever it is."""
    if isinstance(tree, list):
        return [value for one in tree for value in values_of(one, key)]
    if not isinstance(tree, dict):
        return []
    return ([tree[key]] if key in tree else []) + values_of(list(tree.values()), key)


class Deploy(unittest.TestCase):
    def test_every_sample_configuration_is_one_that_the_program_takes(self):
        for program in ("proxynode", "netnode"):
            found = glob.glob(os.path.join(DEPLOY, "**", program + "*.toml"), recursive=True)
            self.assertGreater(len(found), 1)
            for path in found:
                with open(path) as file:
                    self.check_configurations({program + ".toml": file.read()})

    @staticmethod
    def tls_file(folder):
        """A certificate of its own authority with its private key, in the place of all others."""
        path = os.path.join(folder, "tls.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=sample",
                        "-keyout", path, "-out", path + ".crt"], capture_output=True, check=True)
        with open(path, "a") as both, open(path + ".crt") as certificate:
            both.write(certificate.read())
        return path

    def check_configurations(self, data):
        for name, text in data.items():
            program = name.partition(".toml")[0]
            with tempfile.TemporaryDirectory() as keys, \
                    tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                with open(os.open(os.path.join(keys, "web.key"), os.O_WRONLY | os.O_CREAT,
                                  0o600), "w") as key:
                    key.write("x" * 32)
                text = text.replace("/etc/sanproxy/keys", keys)
                file.write(re.sub(r"/etc/sanproxy/\w+\.(pem|key)", self.tls_file(keys), text))
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
                    templates = maps[volumes["template"]["configMap"]["name"]]
                    made += [self.run_init(container, templates, ip)
                             for ip in ("10.1.2.3", "fd00:10::5")]
        self.assertEqual(sorted(made), ["netnode", "netnode", "proxynode", "proxynode"])

    def run_init(self, container, templates, pod_ip):
        values = {"POD_NAME": "proxy-2", "POD_IP": pod_ip, "NODE_NAME": "host-7"}
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
                self.assertEqual("0.0.0.0" in text, ":" not in pod_ip, text)
            self.check_configurations({name: text})
        return name.partition(".toml")[0]

    def test_objects_are_in_the_namespace_that_is_made_first(self):
        for path in glob.glob(os.path.join(DEPLOY, "kubernetes", "*.yaml")):
            with open(path) as file:
                for one in yaml.safe_load_all(file):
                    if os.path.basename(path) == "namespace.yaml":
                        self.assertEqual((one["kind"], one["metadata"]["name"]),
                                         ("Namespace", "sanproxy"))
                    else:
                        self.assertNotEqual(one["kind"], "Namespace", path)
                        self.assertEqual(one["metadata"].get("namespace"), "sanproxy", path)

    def test_the_images_packages_have_every_library_that_the_programs_need(self):
        script = os.path.join(DEPLOY, "kubernetes", "runtime-packages")
        programs = [os.path.join(BIN, name) for name in ("proxynode", "netnode", "sanctl",
                                                         "appnode-httpd", "appnode-echo")]
        result = subprocess.run([script, *programs], capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        for package in ("libc6", "libstdc++6", "libibverbs1", "librdmacm1", "libspdlog1.10"):
            self.assertIn(package, result.stdout.split())
        wrong = subprocess.run([script, programs[0], "/nowhere"], capture_output=True, check=False)
        self.assertNotEqual(wrong.returncode, 0)

    def test_the_image_has_the_programs_that_probes_run(self):
        with open(os.path.join(DEPLOY, "kubernetes", "Dockerfile")) as file:
            words = file.read().split()
        run = set()
        for path in glob.glob(os.path.join(DEPLOY, "kubernetes", "*.yaml")):
            with open(path) as file:
                for one in yaml.safe_load_all(file):
                    run |= {probe["command"][0] for probe in values_of(one, "exec")}
        self.assertIn("curl", run)
        for program in run:
            self.assertIn(program, words)

    def test_images_that_are_not_built_here_say_where_they_are(self):
        images = set()
        for path in glob.glob(os.path.join(DEPLOY, "kubernetes", "*.yaml")):
            with open(path) as file:
                images |= {image for one in yaml.safe_load_all(file) for image in values_of(one, "image")}
        self.assertIn("sanproxy:latest", images)
        for image in images - {"sanproxy:latest"}:
            registry = image.partition("/")[0]
            self.assertRegex(registry, r"^[\w-]+\.[\w.-]+$", image)

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

    def test_a_unit_is_started_until_what_it_wants_is_there(self):
        for path in glob.glob(os.path.join(DEPLOY, "systemd", "*.service")):
            with open(path) as file:
                head, _, rest = file.read().partition("[Service]")
            if "Restart=" in rest:
                self.assertIn("StartLimitIntervalSec=0", head.splitlines(), path)

    def test_what_stops_with_bird_starts_with_it(self):
        with open(os.path.join(DEPLOY, "systemd", "sanproxy-health.service")) as file:
            text = file.read()
        self.assertEqual("Requires=bird.service" in text, "WantedBy=multi-user.target bird.service" in text)

    def test_what_a_network_node_has_written_is_there_after_a_stop_and_a_start(self):
        with open(os.path.join(DEPLOY, "systemd", "sanproxy-netnode.service")) as file:
            self.assertIn("RuntimeDirectoryPreserve=yes", file.read().splitlines())

    def test_a_unit_of_any_node_lets_it_reach_rdma_devices_and_lock_memory(self):
        for unit in ("proxynode", "netnode", "app@"):
            with open(os.path.join(DEPLOY, "systemd", f"sanproxy-{unit}.service")) as file:
                lines = file.read().splitlines()
            for line in ("LimitMEMLOCK=infinity", "DeviceAllow=char-infiniband_verbs rw",
                         "DeviceAllow=/dev/infiniband/rdma_cm rw"):
                self.assertIn(line, lines, unit)
            self.assertNotIn("PrivateDevices=yes", lines, unit)
            families = [line for line in lines if line.startswith("RestrictAddressFamilies=")]
            self.assertEqual(len(families), 1, unit)
            self.assertIn("AF_NETLINK", families[0].split(), unit)

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
