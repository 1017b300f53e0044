"""Holds the includes to the layers: the order of SANPROXY_FOLDERS in CMakeLists.txt, and who may
know whom (docs/architecture.md, "Layers")."""

import os
import re
import unittest

from source_files import CODE, ROOT, text_of, tracked

INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)
AREAS = ("lwproto/", "netnode/", "proxynode/", "appnode-lib/")
OUTSIDE = ("tests/", "bench/", "deploy/")  # they see everything; nothing sees them

# (who, may not include, why). First match of `who` does not end the search: all rules hold.
FORBIDDEN = (
    (r"lwproto/", r"(netnode|proxynode|appnode-lib|sanproxy)/", "lwproto is the ground floor"),
    (r"netnode/", r"(proxynode|appnode-lib|sanproxy)/", "a network node knows no endpoints"),
    (r"proxynode/", r"(appnode-lib|sanproxy)/", "the two ends share only lwproto"),
    (r"appnode-lib/", r"(netnode|proxynode)/", "an application does no TCP"),
    (r"(?!proxynode/stack/)", r"(lwip|netif)/", "only proxynode/stack includes lwIP"),
    (r"(?!lwproto/fabric/|proxynode/main/|netnode/main/|appnode-lib/client/|tests/|bench/)",
     r"lwproto/fabric/(shm|verbs|tcp)/", "fabrics are named only where a process is assembled"),
    (r"(?!netnode/packet_io/|proxynode/main/|netnode/main/|tests/|bench/)",
     r"netnode/packet_io/(?!packet_io\.h)", "drivers are named only where a process is assembled"),
    (r"(?!lwproto/daemon/log\.h)", r"spdlog/spdlog\.h", "who logs includes lwproto/daemon/log.h"),
    (r"lwproto/(flow|wire)/", r"lwproto/(channel|fabric|buffer)/",
     "the ledgers and the codec are arithmetic on bytes"),
    (r"lwproto/flow/", r"lwproto/wire/", "the ledgers do not know the format"),
    (r"lwproto/fabric/", r"lwproto/(flow|wire|channel)/", "a fabric moves bytes, not messages"),
)
# These do not know one another.
SIBLINGS = ("stack", "service", "http", "cache", "tls")


def folders_in_order():
    text = re.search(r"set\(SANPROXY_FOLDERS(.*?)\)", text_of("CMakeLists.txt"), re.DOTALL)[1]
    return text.split()


def folder_of(path, folders):
    """The listed folder that holds `path`: the longest that is a prefix."""
    holding = [f for f in folders if path.startswith(f + "/")]
    return max(holding, key=len, default=None)


def includes(name):
    """(what is included, as written; the path it names in the tree or None)."""
    for target in INCLUDE.findall(text_of(name)):
        inside = target if os.path.exists(os.path.join(ROOT, target)) else None
        yield target, inside


class Layers(unittest.TestCase):
    def setUp(self):
        self.folders = folders_in_order()
        self.files = [f for f in tracked(*CODE) if f.startswith(AREAS + OUTSIDE)]

    def test_every_source_file_is_in_a_listed_folder(self):
        stray = [f for f in self.files if f.startswith(AREAS)
                 and not f.startswith("appnode-lib/include/") and not folder_of(f, self.folders)]
        self.assertEqual(stray, [], "add the folder to SANPROXY_FOLDERS in CMakeLists.txt")

    def test_no_include_goes_up_the_layers(self):
        wrong = []
        for name in self.files:
            mine = folder_of(name, self.folders)
            if mine is None:
                continue
            for _, inside in includes(name):
                theirs = folder_of(inside, self.folders) if inside else None
                if theirs and self.folders.index(theirs) > self.folders.index(mine):
                    wrong.append(f"{name} includes {inside}")
        self.assertEqual(wrong, [])

    def test_nobody_includes_what_it_must_not_know(self):
        wrong = []
        for name in self.files:
            for target, _ in includes(name):
                wrong += [f"{name} includes {target}: {why}" for who, what, why in FORBIDDEN
                          if re.match(who, name) and re.match(what, target)
                          and not (name.startswith(OUTSIDE) and who.startswith("(?!proxynode/st"))]
                if name.startswith(AREAS) and target.startswith(OUTSIDE):
                    wrong.append(f"{name} includes {target}: nothing sees tests and benchmarks")
        self.assertEqual(wrong, [])

    def test_siblings_of_the_proxy_do_not_know_one_another(self):
        wrong = []
        for name in self.files:
            parts = name.split("/")
            if parts[0] != "proxynode" or parts[1] not in SIBLINGS:
                continue
            for target, _ in includes(name):
                other = target.split("/")
                if other[0] == "proxynode" and other[1] in SIBLINGS and other[1] != parts[1]:
                    wrong.append(f"{name} includes {target}")
        self.assertEqual(wrong, [])

    def test_includes_within_the_tree_are_written_from_its_root(self):
        wrong = []
        for name in self.files:
            if name.startswith(("tests/", "appnode-lib/include/")):
                continue
            beside = os.path.dirname(os.path.join(ROOT, name))
            for target, inside in includes(name):
                if inside is None and os.path.exists(os.path.join(beside, target)):
                    wrong.append(f"{name} includes {target}")
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
