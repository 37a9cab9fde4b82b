# GNU make and a C compiler are all it takes.
#
#   make                 the command, ./tokenskip
#   make demo            asks the demo model a question
#   make test            all tests, plain and under sanitizers; ends in one line "N passed, N failed"
#   make examples        the programs of examples/, in build/
#   make compile-matrix  the header under gcc and clang, C99 to C++23, with and without CUDA
#   make fuzz            the parsers, and calls of the API in any order, under libFuzzer (clang), FUZZ_SECONDS each
#   make test-threads    one model, many threads, under -fsanitize=thread
#   make test-stateful   random calls of the API, plain and under sanitizers, STATEFUL_SECONDS in all
#   make test-oracle     the tokenizer against the reference implementation (needs node and npm)
#   make test-browser    the page of `trace --html` in Chromium (needs node and npm)
#   make test-arm        the library, the command and their tests for ARM, emulated (Debian; see below)
#   make test-windows    the unit tests and the command for Windows, under wine (both from Debian)
#   make test-ranks      batch by ranks, under OpenMPI and as Slurm starts them (Debian; see below)
#   make test-gpu        the CUDA backend, on a machine with an NVIDIA GPU
#   make test-gpu-sanitize its last part, compute-sanitizer, alone
#   make bench-gemm      the CPU's matrix product beside OpenBLAS's
#   make bench-tokenizer the tokenizer beside the official library (needs node and npm)
#   make bench-cuda      what `tokenskip bench` does not see of the CUDA backend (needs a GPU with 40 GB)
#   make headers         tokenskip.h and kernels.cu.h from src/
#   make shared          libtokenskip.so, in build/
#   make install         command, headers, libtokenskip.so, manual page, completions: PREFIX=/usr/local DESTDIR=
#   make uninstall       takes them away again; the same variables
#   make test-package    installs, CMake, and a Debian package in a clean root (Debian, as root; takes minutes)
#   make clean

CC ?= cc
CXX ?= c++
CFLAGS ?= -O2
WARNINGS = -Wall -Wextra -Wpedantic -Wshadow
LIBS = -lm -lpthread -ldl
SANITIZE = -Og -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_SECONDS ?= 60
STATEFUL_SECONDS ?= 600
DEMO_MODEL = examples/demo-model

TOOL_SOURCES = $(wildcard tools/command/*.c)
TOOL_OBJECTS = $(TOOL_SOURCES:tools/command/%.c=build/tools/%.o)
SANITIZED_TOOL_OBJECTS = $(TOOL_SOURCES:tools/command/%.c=build/sanitized/tools/%.o)

TESTS = $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
# (test_ranks needs OpenMPI: make test-ranks)
SHELL_TESTS = $(filter-out test_ranks,$(patsubst tests/%.sh,%,$(wildcard tests/test_*.sh)))
# (what the shell tests read JSON and dumps with, and the terminal they run the command on)
TEST_PROGRAMS = tests/json_lint tests/dump_check tests/make_sparse tests/on_terminal
EXAMPLES = $(patsubst examples/%,%,$(basename $(wildcard examples/*.c examples/*.cpp)))

# What is not everywhere is looked for, and what depends on it is skipped with a word, not in silence.
HAS_CXX := $(shell command -v $(CXX) 2>/dev/null)
HAS_SANITIZERS = $(eval HAS_SANITIZERS := $$(shell mkdir -p build && echo 'int main(void) { return 0; }' | \
    $(CC) $(SANITIZE) -x c - -o build/sanitizers_work 2>/dev/null && \
    build/sanitizers_work && echo yes))$(HAS_SANITIZERS)

.PHONY: all demo examples headers clean FORCE
.PHONY: test test-threads test-stateful test-oracle test-browser test-gpu test-gpu-sanitize compile-matrix fuzz
.PHONY: bench-gemm bench-tokenizer bench-cuda
.DELETE_ON_ERROR:
.SECONDARY:

all: tokenskip

# ---- The command ----------------------------------------------------------------------------------------------------

tokenskip: $(TOOL_OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) $^ -o $@ $(LIBS)

build/tools/%.o: tools/command/%.c | build/tools
	$(CC) -std=c99 $(CFLAGS) $(WARNINGS) $(CPPFLAGS) -I. -Ibuild -MMD -MP -c $< -o $@

# the page of `trace --html` as lines of C: a string literal each, short enough for C99
build/trace_page.h: tools/command/trace_page.html tools/quote_lines.sed | build/tools
	sed -f tools/quote_lines.sed $< > $@

build/tools/trace_html.o build/sanitized/tools/trace_html.o: build/trace_page.h

build/sanitized/tokenskip: $(SANITIZED_TOOL_OBJECTS)
	$(CC) $(SANITIZE) $^ -o $@ $(LIBS)

build/sanitized/tools/%.o: tools/command/%.c | build/sanitized/tools
	$(CC) -std=c99 $(SANITIZE) $(WARNINGS) -I. -Ibuild -MMD -MP -c $< -o $@

# Two tokens a step, so that there is something to watch: left to itself, so small a model is sure of it all at once.
demo: tokenskip
	./tokenskip generate -m $(DEMO_MODEL) -p "Who is Newton in physics?" \
	    --gen-length 32 --no-threshold --steps 16 --visual

# ---- Examples -------------------------------------------------------------------------------------------------------

examples: $(EXAMPLES:%=build/examples/%)

build/examples/%: examples/%.c | build/examples
	$(CC) $(CFLAGS) $(WARNINGS) -I. -MMD -MP $< -o $@ $(LIBS)

build/examples/%: examples/%.cpp | build/examples
ifneq ($(HAS_CXX),)
	$(CXX) -std=c++11 $(CFLAGS) $(WARNINGS) -I. -MMD -MP $< -o $@ $(LIBS)
else
	@echo "$<: skipped, there is no C++ compiler ($(CXX))"
endif

# ---- Tests ----------------------------------------------------------------------------------------------------------
# Every program is built at -O2 and again under the sanitizers, and run, whatever became of the others. run_test.sh
# keeps what it printed in build/test/NAME.log, with the counts in its last line.

RUN_TEST = sh tools/run_test.sh
EMULATED = test_emulated test_emulated_sm80
# (without the fake stack, on which gcc before 14 misaligns 64-byte vectors: its bug 110027)
ENVIRONMENT = ASAN_OPTIONS=detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
TEST_LOGS = $(TESTS:%=build/test/%.log) $(SHELL_TESTS:%=build/test/%.log) build/test/examples.log \
    $(if $(HAS_CXX),$(EMULATED:%=build/test/%.log))
# (the seed's failure takes hundreds of answers: too slow under sanitizers; the others run no code of the library)
SANITIZED_TESTS = $(TESTS) \
    $(filter-out test_seed_failure test_headers test_packages test_readme,$(SHELL_TESTS))
SANITIZED_LOGS = $(SANITIZED_TESTS:%=build/test/sanitized_%.log)

test: $(TEST_LOGS) $(if $(HAS_SANITIZERS),$(SANITIZED_LOGS))
	@$(if $(HAS_SANITIZERS),:,echo "sanitizers: skipped, $(CC) cannot link -fsanitize=address,undefined")
	@$(if $(HAS_CXX),:,echo "embed.cpp and test_emulated: skipped, there is no C++ compiler ($(CXX))")
	@for log in $^; do tail -n 1 $$log; done | awk '{ passed += $$(NF-3); failed += $$(NF-1) } \
	    END { print passed + 0 " passed, " failed + 0 " failed"; exit failed != 0 || passed == 0 }'

build/test/test_headers.log: build/make_headers

SANITIZED_SHELL_LOGS = $(SHELL_TESTS:%=build/test/sanitized_%.log)
$(SANITIZED_SHELL_LOGS): build/test/sanitized_%.log: build/sanitized/tokenskip $(TEST_PROGRAMS) FORCE | build/test
	@$(ENVIRONMENT) TOKENSKIP=build/sanitized/tokenskip $(RUN_TEST) $@ sh tests/$*.sh

$(SHELL_TESTS:%=build/test/%.log): build/test/%.log: tokenskip $(TEST_PROGRAMS) FORCE | build/test
	@$(RUN_TEST) $@ sh tests/$*.sh

build/test/examples.log: examples FORCE | build/test
	@$(RUN_TEST) $@ sh tools/test_examples.sh $(DEMO_MODEL)

build/test/sanitized_%.log: build/sanitized/% FORCE | build/test
	@$(ENVIRONMENT) $(RUN_TEST) $@ $<

build/test/%.log: build/tests/% FORCE | build/test
	@$(RUN_TEST) $@ $<

# A test that does not compile is a failed test: run_test.sh says so when there is no program. (Warnings fail in
# `make compile-matrix`, not here, where a compiler of next year may know new ones.)
# Most tests use the library's public side and share one object of it; those that look inside compile their own.
INSIDE_TESTS = $(patsubst tests/%.c,%,$(shell grep -l '^.define TOKENSKIP_IMPLEMENTATION' tests/test_*.c))
# Those of one section compile that section and what it uses, not the rest: seconds instead of half a minute. What of a
# section only others call is unused there.
SECTION_TESTS = $(patsubst tests/%.c,%,$(shell grep -l '^.include "../src/' tests/test_*.c))
$(SECTION_TESTS:%=build/tests/%) $(SECTION_TESTS:%=build/sanitized/%): SECTION_FLAGS = -Isrc -Wno-unused-function
OUTSIDE_TESTS = $(filter-out $(INSIDE_TESTS),$(TESTS))

build/tests/library.o: tests/library.c | build/tests
	$(CC) -O2 $(WARNINGS) -I. -MMD -MP -c $< -o $@

build/sanitized/library.o: tests/library.c | build/sanitized/tools
	$(CC) $(SANITIZE) $(WARNINGS) -I. -MMD -MP -c $< -o $@

$(OUTSIDE_TESTS:%=build/tests/%): build/tests/library.o
$(OUTSIDE_TESTS:%=build/sanitized/%): build/sanitized/library.o

build/tests/test_%: tests/test_%.c | build/tests
	@rm -f $@
	-$(CC) -O2 $(WARNINGS) $(SECTION_FLAGS) -I. -MMD -MP $< $(filter %.o,$^) -o $@ $(LIBS)

build/sanitized/test_%: tests/test_%.c | build/sanitized/tools
	@rm -f $@
	-$(CC) $(SANITIZE) $(WARNINGS) $(SECTION_FLAGS) -I. -MMD -MP $< $(filter %.o,$^) -o $@ $(LIBS)

# CUDA kernels on the CPU. (Unknown to C++ compilers: the kernels' `unroll`; its own ABI's history is of no interest.)
build/emulated_kernels.h: tests/cuda/emulated.awk build/make_headers $(wildcard src/kernels/*) | build/tests
	build/make_headers join src/kernels/kernels.cu build/kernels.cu
	awk -f $< build/kernels.cu > $@

build/tests/test_emulated_sm80: EMULATE = -DEMULATE_SM80
$(EMULATED:%=build/tests/%): tests/cuda/emulated.cc tests/cuda/emulated.h build/emulated_kernels.h tests/test.h
	@rm -f $@
	-$(CXX) -std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi $(EMULATE) -Ibuild -Itests/cuda $< -o $@

$(TEST_PROGRAMS): %: %.c tokenskip.h
	$(CC) -O2 $(WARNINGS) -I. $< -o $@ $(LIBS)

test-threads: | build/tests
	$(CC) -std=c99 -O1 -g -fsanitize=thread $(WARNINGS) -I. tests/test_threads.c tests/library.c \
	    -o build/test_threads $(LIBS)
	build/test_threads

# What `make test` does with a fixed number of sequences, for as long as one likes.
test-stateful: build/tests/test_stateful $(if $(HAS_SANITIZERS),build/sanitized/test_stateful)
	@failed=; for program in $^; do echo "$$program"; \
	$(ENVIRONMENT) ./$$program --seconds $$(($(STATEFUL_SECONDS) / $(words $^))) || failed=1; done; test -z "$$failed"

test-oracle: tokenskip
	sh tests/oracle/run.sh

# On a machine with an NVIDIA GPU: every operation against the CPU's, whole generations, invariants and batches on the
# device, calls refused by its driver, the operations as an older GPU has them, the demo model's accuracy, then
# compute-sanitizer. All are run, whatever became of the others.
GPU_TESTS = test_cuda test_cuda_generate test_cuda_faults older_gpu

build/tests/older_gpu: tests/cuda/older_gpu.c tests/test_cuda.c tokenskip.h kernels.cu.h | build/tests
	$(CC) -O2 $(WARNINGS) -I. $< -o $@ $(LIBS)

test-gpu: $(GPU_TESTS:%=build/tests/%) tokenskip
	@failed=; for test in $(GPU_TESTS); do echo "$$test"; ./build/tests/$$test gpu || failed="$$failed $$test"; done; \
	sh tests/cuda/accuracy.sh ./tokenskip $(DEMO_MODEL) || failed="$$failed accuracy"; \
	sh tests/cuda/sanitize.sh ./tokenskip $(DEMO_MODEL) build/tests/test_cuda || failed="$$failed compute-sanitizer"; \
	if [ -n "$$failed" ]; then echo "test-gpu: failed:$$failed"; exit 1; fi; echo "test-gpu: passed"

test-gpu-sanitize: build/tests/test_cuda tokenskip
	sh tests/cuda/sanitize.sh ./tokenskip $(DEMO_MODEL) build/tests/test_cuda

test-browser: tokenskip
	sh tests/browser/run.sh

# ---- The header in every dialect ------------------------------------------------------------------------------------
# One target a combination, named compiler.standard.cuda.optimisation, so that -j runs them beside each other. (c++2b is
# what compilers that were there before C++23 call it.)

COMPILERS = $(foreach compiler,gcc clang,$(if $(shell command -v $(compiler) 2>/dev/null),$(compiler)))
MATRIX = $(foreach compiler,$(COMPILERS),$(foreach standard,c99 c++11 c++17,$(foreach cuda,default no-cuda dlopen,\
    $(foreach level,O0 O2,$(compiler).$(standard).$(cuda).$(level))) $(compiler).$(standard).static.O2) \
    $(foreach standard,c++20 c++2b,$(compiler).$(standard).no-cuda.O0 $(compiler).$(standard).dlopen.O0) \
    $(compiler).c99.no-cuda-h.O0 $(compiler).gnu99.m32.O1 $(compiler).c99.tools.O2 \
    $(foreach standard,c99 c++11 c++20 c++2b,$(compiler).$(standard).manual.O0))

compile-matrix: $(MATRIX:%=build/matrix/%.log)
	@for compiler in gcc clang; do \
	    command -v $$compiler >/dev/null || echo "compile-matrix: no $$compiler here, skipped"; done
	@cat $^ | awk '$$1 == "ok" { passed++ } $$1 == "failed" { failed++ } \
	    END { print "compile-matrix: " passed + 0 " passed, " failed + 0 " failed"; exit failed != 0 || passed == 0 }'

build/matrix/%.log: build/trace_page.h FORCE | build/matrix
	@sh tools/compile_check.sh build/matrix $(subst ., ,$*) > $@; cat $@

# ---- The rest -------------------------------------------------------------------------------------------------------

FUZZERS = $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))

fuzz: $(FUZZERS:%=fuzz-run-%)

fuzz-run-%: build/fuzz/%
	mkdir -p build/fuzz/corpus_$*
	cd build/fuzz && ./$* -max_total_time=$(FUZZ_SECONDS) $(FUZZ_ARGS) -timeout=10 -rss_limit_mb=2048 \
	    corpus_$* $(wildcard $(CURDIR)/tests/fuzz/corpus/$*)

build/fuzz/fuzz_stateful: tests/stateful.h tests/stateful_models.h tests/random_model.h

build/fuzz/%: tests/fuzz/%.c tokenskip.h | build/fuzz
	clang -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. $< -o $@ $(LIBS)

bench-gemm: build/bench_gemm
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE build/bench_gemm

bench-cuda: build/bench_cuda
	build/bench_cuda

build/bench_cuda: tests/bench/bench_cuda.c tokenskip.h kernels.cu.h | build/tests
	$(CC) -O2 -I. $< -o $@ $(LIBS)

build/bench_gemm: tests/bench/bench_gemm.c tokenskip.h | build/tests
	$(CC) -O2 $(WARNINGS) $< -o $@ -lopenblas $(LIBS)

# The tokenizer beside the official library, on one thread (needs node and npm).
bench-tokenizer: | build/tests
	cd tests/oracle && npm install --no-audit --no-fund --no-package-lock
	$(CC) -O2 $(WARNINGS) -DTOKENSKIP_NO_CUDA -I. tests/bench/bench_tokenizer.c -o build/bench_tokenizer $(LIBS)
	cd tests/bench && RAYON_NUM_THREADS=1 node bench_tokenizer.mjs $(CURDIR)/build/bench_tokenizer

# The two files that one vendors are committed, so that nobody needs to make them; tests/test_headers.sh says when they
# are stale.
headers: build/make_headers
	build/make_headers join src/tokenskip.h tokenskip.h
	build/make_headers quote src/kernels/kernels.cu kernels.cu.h

build/make_headers: tools/make_headers.c | build/tests
	$(CC) -std=c99 -O2 $(WARNINGS) $< -o $@

FOLDERS = $(addprefix build/,tools tests test examples matrix fuzz sanitized/tools)
$(FOLDERS):
	@mkdir -p $@

clean:
	rm -rf build tokenskip $(TEST_PROGRAMS)

# ---- ARM ------------------------------------------------------------------------------------------------------------
# Everything for aarch64, by a cross compiler, run by qemu: the tests, then the command beside this machine's. What is
# missing is installed from Debian. (Each multiplication is a call in the emulator: minutes, not seconds.)

ARM_CC = $(if $(shell command -v aarch64-linux-gnu-gcc),aarch64-linux-gnu-gcc,clang --target=aarch64-linux-gnu)
ARM_RUN = $(shell command -v qemu-aarch64) -L /usr/aarch64-linux-gnu
ARM_TESTS = $(filter-out test_cuda%,$(TESTS))
ARM_LOGS = $(ARM_TESTS:%=build/test/arm_%.log) build/test/arm_same.log

.PHONY: test-arm
test-arm: $(ARM_LOGS)
	@for log in $^; do tail -n 1 $$log; done | awk '{ passed += $$(NF-3); failed += $$(NF-1) } \
	    END { print "test-arm: " passed + 0 " passed, " failed + 0 " failed"; exit failed != 0 || passed == 0 }'

build/test/arm_same.log: build/arm/tokenskip tokenskip FORCE | build/test
	@$(RUN_TEST) $@ sh tests/arm/same.sh $(ARM_RUN) $<

build/test/arm_%.log: build/arm/% FORCE | build/test
	@$(RUN_TEST) $@ $(ARM_RUN) $<

build/arm/ready: tests/arm/install.sh
	sh $<
	@mkdir -p build/arm build/arm-tools && touch $@

build/arm/tokenskip: $(TOOL_SOURCES:tools/command/%.c=build/arm-tools/%.o)
	$(ARM_CC) $^ -o $@ $(LIBS)

build/arm-tools/%.o: tools/command/%.c build/trace_page.h build/arm/ready
	$(ARM_CC) -std=c99 -O2 $(WARNINGS) -I. -Ibuild -MMD -MP -c $< -o $@

build/arm/library.o: tests/library.c build/arm/ready
	$(ARM_CC) -O2 $(WARNINGS) -I. -MMD -MP -c $< -o $@

$(OUTSIDE_TESTS:%=build/arm/%): build/arm/library.o
$(SECTION_TESTS:%=build/arm/%): SECTION_FLAGS = -Isrc -Wno-unused-function
build/arm/test_%: tests/test_%.c build/arm/ready
	@rm -f $@
	-$(ARM_CC) -O2 $(WARNINGS) $(SECTION_FLAGS) -I. -MMD -MP $< $(filter %.o,$^) -o $@ $(LIBS)

# and in the compile matrix, where there is a cross compiler
ARM_MATRIX = $(foreach compiler,$(COMPILERS),$(foreach standard,c99 c++11,$(foreach level,O0 O2,\
    $(compiler).$(standard).aarch64.$(level))))
compile-matrix: $(ARM_MATRIX:%=build/matrix/%.log)

# ---- Installing -----------------------------------------------------------------------------------------------------
# packaging/install.sh has the list of files, for both ways. What `make` does not build is built here.

PREFIX ?= /usr/local
prefix = $(PREFIX)
exec_prefix = $(prefix)
bindir = $(exec_prefix)/bin
libdir = $(exec_prefix)/lib
includedir = $(prefix)/include
datarootdir = $(prefix)/share
datadir = $(datarootdir)
mandir = $(datarootdir)/man
pkgconfigdir = $(libdir)/pkgconfig
cmakedir = $(libdir)/cmake/tokenskip
bashcompletiondir = $(datadir)/bash-completion/completions
zshcompletiondir = $(datadir)/zsh/site-functions
fishcompletiondir = $(datadir)/fish/vendor_completions.d
INSTALL = install
INSTALL_PROGRAM = $(INSTALL)
INSTALL_DATA = $(INSTALL) -m 644
# a tokenskip that runs here, where the one that is built is for another machine
TOKENSKIP_HERE = ./tokenskip

INSTALLED_FOLDERS = prefix bindir libdir includedir mandir pkgconfigdir cmakedir bashcompletiondir zshcompletiondir \
    fishcompletiondir
PAGES = $(addprefix build/share/,tokenskip.1 tokenskip.bash _tokenskip tokenskip.fish)

.PHONY: shared pages install uninstall test-package

shared: build/libtokenskip.so

pages: $(PAGES)

install: tokenskip build/libtokenskip.so $(PAGES)
	@$(foreach name,DESTDIR INSTALL INSTALL_PROGRAM INSTALL_DATA $(INSTALLED_FOLDERS),$(name)='$($(name))') \
	    sh packaging/install.sh install

uninstall:
	@$(foreach name,DESTDIR $(INSTALLED_FOLDERS),$(name)='$($(name))') sh packaging/install.sh uninstall

# Below 1.0 the soname has the minor version: docs/stability.md.
SOVERSION = $(shell sed -n 's/^.define TOKENSKIP_VERSION_MAJOR //p' tokenskip.h).$(shell \
    sed -n 's/^.define TOKENSKIP_VERSION_MINOR //p' tokenskip.h)

build/libtokenskip.so: build/shared/library.o build/exports.map
	$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,libtokenskip.so.$(SOVERSION) -Wl,-z,defs \
	    -Wl,--version-script=build/exports.map $< -o $@ $(LIBS)
	ln -sf libtokenskip.so build/libtokenskip.so.$(SOVERSION)

build/shared/library.o: tools/command/library.c | build/shared
	$(CC) -std=c99 $(CFLAGS) $(WARNINGS) $(CPPFLAGS) -I. -fPIC -fvisibility=hidden \
	    -DTOKENSKIP_API='extern __attribute__((visibility("default")))' -MMD -MP -c $< -o $@

build/exports.map: tools/make_exports.awk tokenskip.h | build/shared
	awk -f $< tokenskip.h > $@

# One run makes all of them.
build/share/tokenskip.1: tools/make_pages.sh $(wildcard tools/pages/*) tokenskip | build/share
	sh $< $(TOKENSKIP_HERE) build/share

$(filter-out %.1,$(PAGES)): build/share/tokenskip.1

build/shared build/share:
	@mkdir -p $@

build/test/test_packages.log: build/libtokenskip.so $(PAGES)

test-package: tokenskip build/libtokenskip.so $(PAGES) $(TEST_PROGRAMS)
	bash tests/packages/run.sh

-include $(wildcard build/*/*.d build/sanitized/tools/*.d)

# ---- Python ---------------------------------------------------------------------------------------------------------
# The module needs the library beside it (or installed, or named by TOKENSKIP_LIBRARY). PYTHON: which one tests it.

PYTHON ?= python3
PYTHON_LIBRARY = python/tokenskip/libtokenskip.so
.PHONY: python python-layout python-wheel test-python notebook test-notebook

python: $(PYTHON_LIBRARY)

$(PYTHON_LIBRARY): tokenskip.h kernels.cu.h
	$(CC) $(CFLAGS) $(LDFLAGS) -shared -fPIC -fvisibility=hidden \
	    '-DTOKENSKIP_API=__attribute__((visibility("default")))' -DTOKENSKIP_IMPLEMENTATION -DTOKENSKIP_CUDA_DLOPEN \
	    -x c $< -o $@ $(LIBS)

# the structs of tokenskip.h for ctypes; committed, and compared by test-python
python-layout:
	$(PYTHON) python/tools/make_layout.py

python-wheel: python
	cd python && $(PYTHON) -m pip wheel --no-deps --no-build-isolation --wheel-dir ../build/wheels .

test-python: python tokenskip
	PYTHONPATH=python $(PYTHON) python/tests/run.py

# the notebook: run from its source, with its outputs; committed, and compared
notebook: python
	$(PYTHON) tools/make_notebook.py

test-notebook: python
	$(PYTHON) tools/make_notebook.py --check

# ---- Other systems --------------------------------------------------------------------------------------------------
# Windows: the unit tests and the command by mingw-w64, run under wine. (fork is what the tests left out are about.)

.PHONY: test-windows windows-programs
WINDOWS_CC = x86_64-w64-mingw32-gcc
WINDOWS_FLAGS = -O2 -D_FILE_OFFSET_BITS=64 $(WARNINGS) -I. -MMD -MP
WINDOWS_TESTS = $(filter-out test_cuda% test_stateful test_terminal,$(TESTS))

test-windows: tokenskip tests/on_terminal
	sh tests/windows/run.sh install
	$(MAKE) windows-programs
	sh tests/windows/run.sh test $(WINDOWS_TESTS)

windows-programs: $(WINDOWS_TESTS:%=build/windows/tests/%.exe) build/windows/tokenskip.exe

build/windows/tokenskip.exe: $(TOOL_SOURCES:tools/command/%.c=build/windows/tools/%.o)
	$(WINDOWS_CC) -static $^ -o $@

build/windows/tools/%.o: tools/command/%.c build/trace_page.h | build/windows/tools
	$(WINDOWS_CC) -std=c99 $(WINDOWS_FLAGS) -Ibuild -c $< -o $@

build/windows/tests/library.o: tests/library.c | build/windows/tests
	$(WINDOWS_CC) $(WINDOWS_FLAGS) -c $< -o $@

$(SECTION_TESTS:%=build/windows/tests/%.exe): SECTION_FLAGS = -Isrc -Wno-unused-function
$(OUTSIDE_TESTS:%=build/windows/tests/%.exe): build/windows/tests/library.o

build/windows/tests/%.exe: tests/%.c | build/windows/tests
	@rm -f $@
	-$(WINDOWS_CC) $(WINDOWS_FLAGS) $(SECTION_FLAGS) -static $< $(filter %.o,$^) -o $@

build/windows/tests build/windows/tools:
	@mkdir -p $@

-include $(wildcard build/windows/*/*.d)

# The header and the command for Windows and, with Linux's headers, for macOS (compile_check.sh).
SYSTEMS_MATRIX = $(foreach compiler,$(COMPILERS),$(compiler).c99.windows.O2 $(compiler).c++11.windows.O0 \
    $(compiler).c99.macos.O1 $(compiler).c++11.macos.O1) gcc.c99.windows32.O2 gcc.c++11.windows32.O0
compile-matrix: $(SYSTEMS_MATRIX:%=build/matrix/%.log)

# ---- Several processes ----------------------------------------------------------------------------------------------
# `batch` under OpenMPI, and with Slurm's variables; installs Debian's openmpi-bin where there is no mpirun.

.PHONY: test-ranks

test-ranks: tokenskip
	sh tests/test_ranks.sh
