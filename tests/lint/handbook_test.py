"""Holds pages to the code: what is counted is shown, what is named exists. (The keys of the
configuration: tests/proxynode/main/config_document_test.cc.)"""

import re
import unittest

from source_files import text_of, tracked

# Where they are counted, and where they are shown. Each field of these structures has a place there.
COUNTERS = (
    ("proxynode/stack/stack.h", "StackCounters"),
    ("netnode/net/reassembly.h", "ReassemblyCounters"),
    ("proxynode/translate/translator.h", "TranslatorCounters"),
    ("netnode/packet_io/packet_io.h", "Counters"),
    ("lwproto/channel/channel.h", "ChannelCounters"),
    ("proxynode/admin/pages.h", "LoopCounters"),
)
SHOWN_IN = ("proxynode/admin/pages.cc", "proxynode/admin/stack_metrics.cc")


def fields(path, struct):
    body = re.search(rf"^struct {struct} {{$(.*?)^}};$", text_of(path),
                     re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"\b(\w+) = 0\b", re.sub(r"//.*", "", body))


class Handbook(unittest.TestCase):
    def test_every_counter_is_shown_by_the_admin_endpoint(self):
        shown = "".join(text_of(path) for path in SHOWN_IN)
        for path, struct in COUNTERS:
            names = fields(path, struct)
            self.assertGreater(len(names), 1, f"the pattern finds no counters in {struct}")
            hidden = [name for name in names if not re.search(rf"(\.|->|::){name}\b", shown)]
            self.assertEqual(hidden, [], f"{struct} in {path}: counted, but shown nowhere")

    def test_source_files_that_pages_name_exist(self):
        names = tracked()
        wrong = []
        for page in tracked(".md"):
            for path in re.findall(r"`([\w/.-]+\.(?:cc|h|py|sh|toml))`", text_of(page)):
                if not any(name == path or name.endswith("/" + path) for name in names):
                    wrong.append(f"{page} names {path}")
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
