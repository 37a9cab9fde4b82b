"""_layout.py is what tokenskip.h says, and ctypes lays it out as the compiler does."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from common import ROOT
from tokenskip import _errors, _layout, _options

sys.path.insert(0, os.path.join(ROOT, "python", "tools"))
import make_layout  # noqa: E402

COMPILER = os.environ.get("CC", "cc").split()
needs_compiler = unittest.skipUnless(shutil.which(COMPILER[0]), "there is no C compiler")


@needs_compiler
class LayoutTest(unittest.TestCase):
    def test_it_is_not_stale(self):
        with open(make_layout.LAYOUT, encoding="utf-8") as file:
            self.assertEqual(file.read(), make_layout.Layout().text(), "stale: run make python-layout")

    def test_sizes_offsets_and_values_are_the_compilers(self):
        with tempfile.TemporaryDirectory() as folder:
            source, program = os.path.join(folder, "layout.c"), os.path.join(folder, "layout")
            with open(source, "w", encoding="utf-8") as file:
                file.write(make_layout.Layout().c_program())
            subprocess.run([*COMPILER, "-w", source, "-o", program], check=True)
            printed = subprocess.run([program], stdout=subprocess.PIPE, check=True).stdout.decode()
        expected = {name: int(value) for name, value in (line.split() for line in printed.splitlines())}
        found = {}
        for struct in _layout.STRUCTS:
            found[struct.__name__] = ctypes.sizeof(struct)
            for field, *_ in struct._fields_:
                found[f"{struct.__name__}.{field}"] = getattr(struct, field).offset
        for values in _layout.ENUMS.values():
            found.update(values)
        found.update({name: getattr(_layout, name) % 2**64 for name in make_layout.Layout().constants})
        self.assertGreater(len(found), 300)
        self.assertEqual(found, expected)


class ParserTest(unittest.TestCase):
    """The maker on declarations of one line."""

    def parse(self, text):
        return make_layout.Parser(text)

    def test_enum(self):
        self.assertEqual(self.parse("typedef enum e { A = (-1), B, C = 0x10, D } e;").enums,
                         {"e": {"A": -1, "B": 0, "C": 16, "D": 17}})

    def test_struct(self):
        parsed = self.parse("typedef struct o o; typedef struct s { const struct o *a, b; unsigned char c[4];"
                            " int (*f)(void *user, const int32_t *p); char **d; } s;")
        self.assertEqual(parsed.structs["s"], [("a", "const o*"), ("b", "const o"), ("c", "unsigned char[4]"),
                                               ("f", "s_f"), ("d", "char**")])
        self.assertEqual(parsed.callbacks["s_f"], ("int", ["void*", "const int32_t*"]))
        self.assertEqual(parsed.opaque, ["o"])

    def test_function(self):
        parsed = self.parse("TSK_PUBLIC_FUNCTION const char *f(const uint32_t counter[4], int); "
                            "TSK_PUBLIC_FUNCTION int g(void);")
        self.assertEqual(parsed.functions, {"f": ("const char*", ["const uint32_t*", "int"]), "g": ("int", [])})

    def test_what_it_does_not_understand_is_an_error(self):
        with self.assertRaises(SyntaxError):
            self.parse("typedef union u { int a; } u;")


class CoverageTest(unittest.TestCase):
    """What the header adds has to be taken up by hand: these say where."""

    def test_every_status_has_an_exception(self):
        statuses = {v for n, v in _layout.ENUMS["tsk_status"].items() if n not in ("TSK_OK", "TSK_STATUS_COUNT")}
        self.assertEqual(set(_errors.BY_STATUS), statuses, "_errors.py")

    def test_the_presets_are_the_commands(self):
        with open(os.path.join(ROOT, "tools", "command", "options.c"), encoding="utf-8") as file:
            table = re.search(r"presets\[\] = \{(.*?)\n\};", file.read(), re.S)[1]
        found = {}
        for preset, option, value in re.findall(r'\{"(\w+)", (?:"([\w-]+)"|NULL), (?:"([^"]+)"|NULL)\}', table):
            options = found.setdefault(preset, {})
            if option:
                options[option.replace("-", "_")] = value
        mine = {preset: {name: "on" if value is True else str(value) for name, value in options.items()}
                for preset, options in _options.PRESETS.items()}
        self.assertEqual(mine, found, "_options.py")

    def test_every_option_has_a_keyword(self):
        fields = {name for name, kind in _layout.tsk_generate_options._fields_}
        fields -= {"skip", "transfer", "on_step", "on_select", "cancel", "user"}
        fields |= {"skip." + name for name, kind in _layout.tsk_skip_options._fields_}
        self.assertEqual({field for field, _ in _options.OPTIONS.values()}, fields, "_options.py")
