"""Real clients that know nothing of us, over TUN and AF_PACKET, IPv4 and IPv6."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import unittest

from harness import case, programs, settings
from harness.pattern import Pattern

BIG_BYTES = 64 << 20 if settings.quick else 1 << 30
SIZES = [1, 1000, 1024, 1025, 1459, 65535, 65536, 65537, 1 << 20, 10_000_019]
BYTES = Pattern("files")


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def need(program):
    if not shutil.which(program):
        raise unittest.SkipTest(f"{program} is not installed")


class Downloads:
    """curl, wrk and ab against appnode-httpd."""

    def setUp(self):
        self.one = self.lab()
        self.root = os.path.join(self.one.log_dir, "root")
        os.makedirs(self.root, exist_ok=True)
        self.addCleanup(shutil.rmtree, self.root, True)

    def put(self, size):
        BYTES.write_file(os.path.join(self.root, f"{size}.bin"), size)

    def serve(self):
        self.one.start_httpd(port=80, family=self.family, root=self.root)

    def url(self, path):
        return self.one.url(path, 80, self.family)

    def test_curl_gets_files_of_many_sizes_with_equal_checksums(self):
        for size in SIZES:
            self.put(size)
        self.serve()
        for size in SIZES:
            got = self.one.curl(self.url(f"/{size}.bin"))
            self.assertEqual((got.returncode, got.stderr), (0, b""), f"size {size}")
            self.assertEqual(hashlib.sha256(got.stdout).hexdigest(), BYTES.sha256(size),
                             f"size {size}")

    def test_curl_uses_one_connection_for_many_urls(self):
        for size in SIZES:
            self.put(size)
        self.serve()
        urls = [self.url(f"/{size}.bin") for size in SIZES * 5]
        got = self.one.curl("-w", "%{stderr}%{num_connects} %{http_code}\n", *urls)
        self.assertEqual(got.returncode, 0, got.stderr)
        lines = got.stderr.decode().splitlines()
        self.assertEqual(lines[0], "1 200")
        self.assertEqual(set(lines[1:]), {"0 200"})
        expected = hashlib.sha256()
        for size in SIZES * 5:
            for chunk in BYTES.chunks(size):
                expected.update(chunk)
        self.assertEqual(hashlib.sha256(got.stdout).hexdigest(), expected.hexdigest())

    def test_curl_http10_is_served_and_closed(self):
        self.put(100_000)
        self.serve()
        got = self.one.curl("--http1.0", self.url("/100000.bin"))
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(hashlib.sha256(got.stdout).hexdigest(), BYTES.sha256(100_000))

    def test_a_thousand_parallel_curl_transfers_all_arrive_whole(self):
        count, size = (300 if settings.quick else 1000), 100_003
        self.put(size)
        self.serve()
        out = os.path.join(self.one.log_dir, "parallel")
        os.makedirs(out)
        self.addCleanup(shutil.rmtree, out, True)
        # --parallel-immediate and
        # Connection: close make each transfer a connection of its own.
        config = os.path.join(self.one.log_dir, "parallel.curl")
        with open(config, "w") as file:
            for index in range(count):
                file.write(f'url = "{self.url(f"/{size}.bin")}"\noutput = "{out}/{index}"\n')
        got = self.one.curl("--parallel", "--parallel-immediate", "--parallel-max", "300",
                            "-H", "Connection: close", "-K", config, timeout_s=200)
        self.assertEqual(got.returncode, 0, got.stderr[-2000:])
        expected = BYTES.sha256(size)
        wrong = [i for i in range(count) if sha256_of(os.path.join(out, str(i))) != expected]
        self.assertEqual(wrong, [])

    def test_a_thousand_curl_processes_at_once_all_arrive_whole(self):
        count = 100 if settings.quick else 1000
        self.put(4097)
        self.serve()
        argv = self.one.client.argv(["curl", "-sS", "--max-time", "120", self.url("/4097.bin")])
        running = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                   for _ in range(count)]
        expected = BYTES.sha256(4097)
        for one in running:
            out, err = one.communicate(timeout=150)
            self.assertEqual((one.returncode, err), (0, b""))
            self.assertEqual(hashlib.sha256(out).hexdigest(), expected)

    def test_wrk_sees_no_error(self):
        need("wrk")
        self.put(1000)
        self.serve()
        got = self.one.run("wrk", "-t1", "-c64", "-d2s", self.url("/1000.bin"))
        text = got.stdout.decode()
        self.assertEqual(got.returncode, 0, text)
        self.assertNotIn("Socket errors", text)
        self.assertNotIn("Non-2xx", text)
        self.assertGreater(float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)), 0)

    def run_ab(self, *words):
        need("ab")
        self.put(1000)
        self.serve()
        requests = 2000 if settings.quick else 20000
        got = self.one.run("ab", "-q", *words, "-n", requests, "-c", 50, self.url("/1000.bin"))
        text = got.stdout.decode()
        self.assertEqual(got.returncode, 0, text + got.stderr.decode())
        self.assertRegex(text, rf"Complete requests:\s+{requests}\n")
        self.assertRegex(text, r"Failed requests:\s+0\n")
        self.assertNotIn("Non-2xx", text)

    def test_ab_without_keep_alive_fails_no_request(self):
        self.run_ab()

    def test_ab_with_keep_alive_fails_no_request(self):
        self.run_ab("-k")


class Uploads:
    """curl to appnode-httpd's /upload, which counts and hashes."""

    def upload(self, one, path, *words):
        got = one.curl(*words, one.url("/upload", 80, self.family))
        self.assertEqual(got.returncode, 0, got.stderr)
        hashed = subprocess.run([programs.test_path("probe_node"), "--hash", path], check=True,
                                capture_output=True, text=True).stdout.strip()
        self.assertEqual(json.loads(got.stdout),
                         {"received": os.path.getsize(path), "fnv1a64": hashed})

    def test_curl_uploads_of_many_sizes_arrive_whole(self):
        one = self.lab()
        one.start_httpd(port=80, family=self.family)
        for size in SIZES:
            path = os.path.join(one.log_dir, "up.bin")
            BYTES.write_file(path, size)
            self.upload(one, path, "-T", path)
            self.upload(one, path, "--data-binary", "@" + path)
        os.remove(path)

    def test_curl_chunked_upload_arrives_whole(self):
        one = self.lab()
        one.start_httpd(port=80, family=self.family)
        path = os.path.join(one.log_dir, "up.bin")
        BYTES.write_file(path, 3_000_001)
        self.upload(one, path, "-H", "Transfer-Encoding: chunked", "-T", path)
        os.remove(path)


class Big:
    """Once per topology: the largest transfers."""

    def test_curl_gets_the_largest_file_with_equal_checksum(self):
        one = self.lab()
        root = os.path.join(one.log_dir, "root")
        os.makedirs(root)
        self.addCleanup(shutil.rmtree, root, True)
        BYTES.write_file(os.path.join(root, "big.bin"), BIG_BYTES)
        one.start_httpd(port=80, family=self.family, root=root)
        out = os.path.join(one.log_dir, "got.bin")
        self.addCleanup(lambda: os.path.exists(out) and os.remove(out))
        got = one.curl("-o", out, one.url("/big.bin", 80, self.family))
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(os.path.getsize(out), BIG_BYTES)
        self.assertEqual(sha256_of(out), BYTES.sha256(BIG_BYTES))


    def test_curl_puts_the_largest_file_with_equal_hash(self):
        one = self.lab()
        one.start_httpd(port=80, family=self.family)
        path = os.path.join(one.log_dir, "up.bin")
        self.addCleanup(os.remove, path)
        BYTES.write_file(path, BIG_BYTES)
        Uploads.upload(self, one, path, "-T", path)


globals().update(case.over(Downloads))
globals().update(case.over(Uploads, shared=True))
globals().update(case.over(Big, families=(4,)))
