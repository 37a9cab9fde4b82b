#!/usr/bin/env python3
"""Makes python/tokenskip/_layout.py, the ctypes declarations, from tokenskip.h.

    python3 python/tools/make_layout.py             writes it
    python3 python/tools/make_layout.py --check     writes nothing; exits with 1 where the file is stale

The C preprocessor ($CC, else cc) takes comments and macros away; what is left is a small language (enumerations,
structs, functions), which is parsed here. Whatever it does not understand ends it with an error that shows the text.
python/tests/test_layout.py compares sizes, offsets and values with a compiled C program.
"""

import argparse
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEADER = os.path.join(ROOT, "tokenskip.h")
LAYOUT = os.path.join(ROOT, "python", "tokenskip", "_layout.py")

SCALARS = {
    "void": "None", "char": "c_char", "unsigned char": "c_ubyte", "int": "c_int", "unsigned": "c_uint",
    "float": "c_float", "double": "c_double", "size_t": "c_size_t",
    "int8_t": "c_int8", "int16_t": "c_int16", "int32_t": "c_int32", "int64_t": "c_int64",
    "uint8_t": "c_uint8", "uint16_t": "c_uint16", "uint32_t": "c_uint32", "uint64_t": "c_uint64",
}
# The mark that stands before every public function once the preprocessor is through.
PUBLIC = "TSK_PUBLIC_FUNCTION"


def preprocess(text, *arguments):
    command = [*os.environ.get("CC", "cc").split(), "-E", "-P", "-x", "c", "-I", ROOT, *arguments, "-"]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, universal_newlines=True, check=True)
    return done.stdout


def number(text):
    """The value of a constant expression: decimal and hexadecimal numbers with C's suffixes, signs, parentheses."""
    plain = re.sub(r"\b(0[xX][0-9a-fA-F]+|[0-9]+)[uUlL]*\b", r"\1", text)
    if not re.fullmatch(r"[0-9a-fA-FxX()+\-* ]+", plain):
        raise ValueError(f"no constant: {text}")
    return int(eval(plain, {"__builtins__": {}}))  # only digits, signs and parentheses come here


class Parser:
    """The declarations of a preprocessed header, in its order."""

    def __init__(self, text):
        self.tokens = re.findall(r"[A-Za-z_]\w*|[0-9]\w*|\S", text)
        self.at = 0
        self.enums = {}       # name: {enumerator: value}
        self.structs = {}     # name: [(field, type)]
        self.opaque = []      # structs that nobody sees into
        self.callbacks = {}   # name: (result type, [parameter types])
        self.functions = {}   # name: (result type, [parameter types])
        while self.at < len(self.tokens):
            self.declaration()
        self.opaque = [name for name in self.opaque if name not in self.structs]

    def fail(self, wanted):
        raise SyntaxError(f"{wanted} expected at: {' '.join(self.tokens[max(0, self.at - 8):self.at + 8])}")

    def next(self):
        self.at += 1
        return self.tokens[self.at - 1]

    def take(self, token):
        if self.tokens[self.at] != token:
            return False
        self.at += 1
        return True

    def want(self, *tokens):
        for token in tokens:
            if not self.take(token):
                self.fail(f"'{token}'")

    def until(self, *ends):
        start = self.at
        while self.tokens[self.at] not in ends:
            self.at += 1
        return " ".join(self.tokens[start:self.at])

    def declaration(self):
        if self.take(PUBLIC):
            kind = self.base_type()
            kind += self.stars()
            name = self.next()
            self.functions[name] = (kind, self.parameters())
            self.want(";")
        elif self.take("struct"):
            self.opaque.append(self.next())
            self.want(";")
        else:
            self.want("typedef")
            if self.take("enum"):
                self.enum()
            else:
                self.want("struct")
                self.struct()

    def enum(self):
        name, value, values = self.next(), 0, {}
        self.want("{")
        while not self.take("}"):
            enumerator = self.next()
            if self.take("="):
                value = number(self.until(",", "}"))
            values[enumerator] = value
            value += 1
            self.take(",")
        self.want(name, ";")
        self.enums[name] = values

    def struct(self):
        name = self.next()
        if self.take("{"):
            fields = []
            while not self.take("}"):
                self.field(name, fields)
            self.structs[name] = fields
        else:
            self.opaque.append(name)
        self.want(name, ";")

    def base_type(self):
        words = []
        while True:
            if self.take("const"):
                words.append("const")
            elif self.take("struct"):
                pass
            elif words and words[-1] == "unsigned" and self.tokens[self.at] in ("char", "int"):
                words.append(self.next())
            elif any(w != "const" for w in words):
                return " ".join(words)
            else:
                words.append(self.next())

    def stars(self):
        out = ""
        while self.tokens[self.at] in ("*", "const"):
            out += "*" if self.next() == "*" else ""
        return out

    def parameters(self):
        self.want("(")
        kinds = []
        while not self.take(")"):
            kind = self.base_type() + self.stars()
            if self.take("("):
                self.fail("no callback")
            if self.tokens[self.at] not in (",", ")"):
                self.next()
            if self.take("["):
                self.until("]")
                self.want("]")
                kind += "*"
            if kind != "void":
                kinds.append(kind)
            self.take(",")
        return kinds

    def field(self, struct, fields):
        base = self.base_type()
        while True:
            kind = base + self.stars()
            if self.take("("):
                self.want("*")
                name = self.next()
                self.want(")")
                callback = f"{struct}_{name}"
                self.callbacks[callback] = (kind, self.parameters())
                kind = callback
            else:
                name = self.next()
                if self.take("["):
                    kind += f"[{number(self.until(']'))}]"
                    self.want("]")
            fields.append((name, kind))
            if self.take(";"):
                return
            self.want(",")


class Layout:
    """What tokenskip.h declares, and how ctypes says it."""

    def __init__(self):
        text = preprocess('#include "tokenskip.h"\n', f"-DTOKENSKIP_API={PUBLIC}")
        self.declared = Parser(text[text.index("typedef enum tsk_status"):])
        self.constants = self.read_constants()

    @staticmethod
    def read_constants():
        """The macros whose value is a whole number."""
        listed = preprocess('#include "tokenskip.h"\n', "-dM")
        names = sorted(set(re.findall(r"^#define (TSK_[A-Z]\w*|TOKENSKIP_VERSION_[A-Z]+) ", listed, re.M)))
        # (a name in quotes is not expanded, the one after it is)
        text = preprocess('#include "tokenskip.h"\n' + "".join(f'"{name}" {name}\n' for name in names))
        found = {}
        for name, value in re.findall(r'^"(\w+)" (.*)$', text, re.M):
            try:
                found[name] = number(value)
            except ValueError:
                pass  # a string, a list
        return found

    def ctype(self, kind):
        """A C type as ctypes has it. `char` that is const is a string; bytes to be written stay a pointer."""
        kind = kind.replace("const ", "") if kind != "const char*" else kind
        if kind == "const char*":
            return "c_char_p"
        if kind.endswith("]"):
            inner, count = kind[:-1].split("[")
            return f"{self.ctype(inner)} * {count}"
        if kind.endswith("*"):
            inner = kind[:-1]
            if inner == "void" or inner in self.declared.opaque:
                return "c_void_p"
            return f"POINTER({self.ctype(inner)})"
        if kind in SCALARS:
            return SCALARS[kind]
        if kind in self.declared.enums:
            return "c_int"
        if kind in self.declared.structs or kind in self.declared.callbacks:
            return kind
        raise SyntaxError(f"a type that is not known: {kind}")

    def wrap(self, begin, parts, end):
        """begin part, part, ... end; broken where a line would be over 118 columns."""
        lines, line = [], begin
        for i, part in enumerate(parts):
            part += ", " if i + 1 < len(parts) else ""
            if len(line + part.rstrip()) > 118 - (len(end) if i + 1 == len(parts) else 0):
                lines.append(line.rstrip())
                line = "    "
            line += part
        return "\n".join(lines + [line + end])

    def function_type(self, result, parameters):
        return [self.ctype(result)] + [self.ctype(p) for p in parameters]

    def text(self):
        d = self.declared
        names = sorted({"CFUNCTYPE", "POINTER", "Structure"} | set(SCALARS.values()) - {"None"} | {"c_char_p",
                                                                                                   "c_void_p"})
        used = []
        body = ["# ---- Constants", ""]
        body += [f"{name} = {value}" for name, value in self.constants.items()]
        body += ["", "# ---- Enumerations", "", "ENUMS = {"]
        for name, values in d.enums.items():
            body.append(self.wrap(f'    "{name}": {{', [f'"{n}": {v}' for n, v in values.items()], "},").replace(
                "\n    ", "\n        "))
        body += ["}", "", "# ---- Structs", ""]
        for name in d.structs:
            body += ["", f"class {name}(Structure):", "    pass", ""]
        body += ["", "# ---- Callbacks", ""]
        for name, (result, parameters) in d.callbacks.items():
            body.append(self.wrap(f"{name} = CFUNCTYPE(", self.function_type(result, parameters), ")"))
        body += ["", "# ---- Fields, in an order in which each struct knows those inside it", ""]
        for name in d.structs:
            fields = [f'("{field}", {self.ctype(kind)})' for field, kind in d.structs[name]]
            body.append(self.wrap(f"{name}._fields_ = [", fields, "]"))
        body += ["", self.wrap("STRUCTS = (", list(d.structs), ")"), ""]
        body += ["# ---- Functions: the result, then the parameters", "", "FUNCTIONS = {"]
        for name, (result, parameters) in d.functions.items():
            types = self.function_type(result, parameters)
            line = self.wrap(f'    "{name}": (', types, ",)," if len(types) == 1 else "),")
            body.append(line.replace("\n    ", "\n        "))
        body += ["}"]
        whole = "\n".join(body)
        used = [name for name in names if re.search(rf"\b{name}\b", whole)]
        head = ['"""The C declarations of tokenskip.h for ctypes. Made by python/tools/make_layout.py: do not edit."""',
                "", self.wrap("from ctypes import (", used, ")"), ""]
        return "\n".join(head) + "\n" + whole + "\n"

    def c_program(self):
        """A C program that prints "NAME SIZE" of each struct, "NAME.FIELD OFFSET", and "NAME VALUE"."""
        lines = ["#include <stdio.h>", "#include <stddef.h>", f'#include "{HEADER}"', "int main(void) {"]
        for name, fields in self.declared.structs.items():
            lines.append(f'    printf("{name} %zu\\n", sizeof({name}));')
            lines += [f'    printf("{name}.{f} %zu\\n", offsetof({name}, {f}));' for f, _ in fields]
        for values in self.declared.enums.values():
            lines += [f'    printf("{n} %lld\\n", (long long){n});' for n in values]
        lines += [f'    printf("{n} %llu\\n", (unsigned long long){n});' for n in self.constants]
        return "\n".join(lines + ["    return 0;", "}", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    given = parser.parse_args()
    text = Layout().text()
    if not given.check:
        with open(LAYOUT, "w", encoding="utf-8") as file:
            file.write(text)
        return 0
    with open(LAYOUT, encoding="utf-8") as file:
        if file.read() == text:
            return 0
    print("python/tokenskip/_layout.py is stale: run make python-layout", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
