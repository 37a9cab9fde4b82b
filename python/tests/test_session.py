"""Sessions and streams: steps, copies, probes, logits, traces."""

import os
import struct
import tempfile
import threading
import unittest

import tokenskip
from common import DEMO, QUESTION, SLOW, golden_model, model, needs_numpy, numpy, read_safetensors, rows, run_command

PLAIN = {"skip_rule": "off", **SLOW}


def largest(a, b):
    """The largest difference of two arrays."""
    return max((abs(x - y) for x, y in zip(flat(a), flat(b))), default=0)


def flat(array):
    out = rows(array)
    while out and isinstance(out[0], list):
        out = [x for row in out for x in row]
    return out


class StreamTest(unittest.TestCase):
    def test_it_ends_with_what_generate_gives(self):
        whole = model().generate(QUESTION, **SLOW)
        with model().stream(QUESTION, **SLOW) as stream:
            steps = list(stream)
            self.assertEqual(list(stream), [])
        self.assertEqual(stream.result.all_tokens, whole.all_tokens)
        self.assertEqual(stream.result.finish_reason, whole.finish_reason)
        self.assertEqual("".join(step.new_text for step in steps), whole.text)
        self.assertEqual(len(steps), whole.nfe)

    def test_what_a_step_says(self):
        start = len(model().chat([("user", QUESTION)]))
        committed, texts, masked = set(), [""], 32
        for step in model().stream(QUESTION, **SLOW):
            self.assertEqual(step.positions, list(range(start, start + 32)))
            self.assertEqual(sum(step.masked), masked)
            masked -= len(step.committed)
            self.assertEqual(step.masks_left, masked)
            self.assertFalse(committed & set(step.committed))
            committed |= set(step.committed)
            for p, prediction, confidence in zip(step.positions, step.predictions, step.confidences):
                self.assertTrue(0 <= confidence <= 1)
                if p in committed:
                    self.assertEqual(step.canvas[p], prediction)
            self.assertEqual(step.n_active, sum(step.active))
            self.assertEqual(step.tokens, step.canvas[start : start + len(step.tokens)])
            self.assertTrue(step.text.startswith(texts[-1]))
            texts.append(step.text)
        self.assertEqual(len(committed), 32)

    def test_cosines_are_there_where_states_were_compared(self):
        found = [step.cosines for step in model().stream(QUESTION, skip_layer_k=4, **SLOW)]
        self.assertEqual([c is None for c in found], [True, True] + [False] * 30)
        self.assertEqual(tuple(found[2].shape), (32, 3))
        self.assertTrue(all(-1.001 <= c <= 1.001 for c in flat(found[2])))

    def test_closing_it_early(self):
        stream = model().stream(QUESTION, **SLOW)
        steps = [next(stream), next(stream)]
        stream.close()
        stream.close()
        self.assertRaises(StopIteration, next, stream)
        self.assertEqual((stream.result.nfe, stream.result.finish_reason), (2, "cancelled"))
        self.assertEqual(stream.result.all_tokens, steps[-1].canvas[-32:])
        for step in model().stream(QUESTION, **SLOW):
            break  # nobody holds it any more

    def test_cancelling_from_another_thread(self):
        with model().stream(QUESTION, **SLOW) as stream:
            next(stream)
            thread = threading.Thread(target=stream.cancel)
            thread.start()
            thread.join()
            self.assertEqual(list(stream), [])
            self.assertEqual((stream.result.nfe, stream.result.finish_reason), (1, "cancelled"))

    def test_the_result_so_far(self):
        with model().stream(QUESTION, **SLOW) as stream:
            next(stream)
            self.assertEqual((stream.result.nfe, stream.result.finish_reason), (1, "none"))


class SessionTest(unittest.TestCase):
    def test_one_generation_after_another(self):
        with model().session(**SLOW) as session:
            self.assertTrue(session.finished)
            self.assertEqual(session.result().nfe, 0)
            for question in (QUESTION, "What is 12 + 30?", QUESTION):
                session.start(question)
                steps = 0
                while not session.finished:
                    steps += session.step() is not None
                self.assertEqual(session.result().all_tokens, model().generate(question, **SLOW).all_tokens)
                self.assertEqual(session.result().nfe, steps)
            self.assertIsNone(session.step())
            self.assertEqual(len(list(session.start(QUESTION).steps())), 32)

    def test_before_the_start(self):
        with model().session() as session:
            for call in (session.step, session.probe):
                with self.assertRaisesRegex(tokenskip.ArgumentError, "before tsk_session_start"):
                    call()
            session.start(QUESTION)
            with self.assertRaises(tokenskip.ArgumentError):
                session.probe()  # a block step without caches
            with self.assertRaises(ValueError):
                session.probe("leap")
            with self.assertRaises(tokenskip.ArgumentError):
                session.probe_logits()  # without a probe

    def test_a_copy_goes_its_own_way(self):
        with model().session(**PLAIN) as session:
            session.start(QUESTION)
            for _ in range(5):
                session.step()
            copy = session.copy()
            other = session.copy(skip_rule="rows")
            self.assertEqual(session.copy(skip_preset="seed", skip_max_age=3).options,
                             {**SLOW, "skip_preset": "seed", "skip_max_age": 3})
            self.assertEqual(copy.result().all_tokens, session.result().all_tokens)
            rest = [step.committed for step in session.steps()]
            self.assertEqual([step.committed for step in copy.steps()], rest)
            self.assertEqual(len(list(other.steps())), len(rest))
            with self.assertRaises(tokenskip.ArgumentError):
                session.copy(gen_length=64)
            with self.assertRaises(TypeError):
                session.copy(colour=1)

    def test_a_copy_inside_on_step(self):
        copies = []

        def on_step(step):
            if step.pass_ == 3:
                copies.append(session.copy())

        session = model().session(on_step=on_step, **SLOW)
        result = session.generate(QUESTION)
        self.assertEqual(copies[0].result().nfe, 4)
        list(copies[0].steps())
        self.assertEqual(copies[0].result().all_tokens, result.all_tokens)

    def test_calls_from_a_callback_of_its_own_pass_are_refused(self):
        session = model().session(on_step=lambda step: session.step(), **SLOW)
        with self.assertRaisesRegex(tokenskip.ArgumentError, "from a callback of its own pass"):
            session.generate(QUESTION)

    def test_probe_and_logits(self):
        """A refresh's logits are those of logits() over the same canvas; a probe commits nothing."""
        config = model().config
        with model().session(**PLAIN) as session:
            session.start(QUESTION)
            canvas = session.result().prompt_tokens + session.result().all_tokens
            first = len(canvas) - 32
            probe = session.probe("refresh")
            self.assertEqual(probe.positions, list(range(first, len(canvas))))
            self.assertTrue(all(probe.active))
            states, logits = session.probe_logits(final_norm=True)
            self.assertEqual(tuple(logits.shape), (32, config.embedding_size))
            self.assertEqual(tuple(states.shape), (32, config.d_model))
            with model().session() as other:
                whole = other.logits(canvas, first)
                self.assertEqual(tuple(whole.shape), (32, config.embedding_size))
                self.assertLess(largest(whole, logits), 1e-4)
                self.assertEqual(tuple(other.logits(canvas, 3, 2).shape), (2, config.embedding_size))
                with self.assertRaises(ValueError):
                    other.logits(canvas, 3, 999)
            self.assertEqual(session.result().mask_residual, 32)
            self.assertEqual(session.result().all_tokens, canvas[first:])
            session.probe("step", canvas)
            with self.assertRaisesRegex(ValueError, "canvas has 3 ids"):
                session.probe("step", [1, 2, 3])

    def test_threshold_1_equals_the_plain_cache(self):
        """The notebook's first two checks."""
        base = model().session(**PLAIN)
        base.start(QUESTION)
        base.probe("refresh")
        exact = base.copy(skip_rule="states", skip_threshold=1.0)
        for _ in range(2):
            base.probe()
            exact.probe()
            self.assertEqual(largest(base.probe_logits(), exact.probe_logits()), 0)


class TraceTest(unittest.TestCase):
    def test_values_equal_the_commands_dump(self):
        prompt = [5, 6, 7, 8]
        made = golden_model("gqa-bf16")
        for options in ({"skip_rule": "off"}, {"skip_layer_k": 2, "skip_threshold": 0.5, "skip_outlier": -1}):
            shape = {"gen_length": 16, "block_length": 8, "threshold": None}
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "dump.safetensors")
                run_command("trace", "-m", made.path, "--device", "cpu", "--prompt-ids", "5,6,7,8", "--gen-length",
                            "16", "--block-length", "8", "--no-threshold", "--dump", path,
                            *([] if options["skip_rule" if "skip_rule" in options else "skip_layer_k"] == "off" else
                              ["--skip-layer-k", "2", "--skip-threshold", "0.5", "--skip-outlier", "-1"]))
                dump = read_safetensors(path)
            prefix = "" if "skip_rule" in options else "skip."
            with made.session(**shape, **options) as session, session.trace() as trace:
                session.generate(prompt)
            found = {}
            for record in trace:
                found[prefix + record.key] = (record.output_shape, record.output.tobytes())
                if record.input is not None and not record.part and record.name != "logits":
                    name = f"{prefix}pass{record.pass_}.{record.name}.input"
                    found[name] = (record.input_shape, record.input.tobytes())
            del dump["index.pass"], dump["index.layer"]
            told = {n: dump.pop(n) for n in list(dump) if n.split(".")[-1] in ("ids", "positions", "ran", "committed")}
            expected = {n: v for n, v in dump.items() if n.startswith("skip.") == bool(prefix)}
            self.assertGreater(len(expected), 500)
            self.assertEqual(set(found), set(expected))
            self.assertEqual([n for n in expected if found[n] != expected[n]], [])
            for record in trace:  # the dump's rows are those of the records
                if record.name not in ("embedding", f"layer_{record.layer}"):
                    continue
                name = f"{prefix}pass{record.pass_}."
                positions = struct.unpack(f"<{told[name + 'positions'][0][0]}i", told[name + "positions"][1])
                ids = struct.unpack(f"<{told[name + 'ids'][0][0]}i", told[name + "ids"][1])
                layer = max(record.layer, 0)  # who is embedded runs layer 0
                flags = told[name + "ran"][1][layer * len(positions) : (layer + 1) * len(positions)]
                ran = [p for p, flag in zip(positions, flags) if flag]
                self.assertEqual(ran, record.positions.tolist())
                self.assertEqual([ids[p] for p in ran], record.ids.tolist())

    def test_who_ran_where_with_which_ids(self):
        made = golden_model("gqa-bf16")
        options = {"gen_length": 16, "block_length": 16, "threshold": None, "skip_layer_k": 2, "skip_threshold": 0.5,
                   "skip_outlier": -1}
        with made.session(**options) as session, session.trace("layer_*", values=False) as trace:
            session.start([5, 6, 7, 8])
            steps = list(session.steps())
        for step, before in zip(steps[1:], steps):
            ran = rows(trace.who_ran(step.pass_, 20))
            self.assertEqual(len(ran), made.config.n_layers)
            for layer, row in enumerate(ran):
                expected = [p for p, a in zip(step.positions, step.active) if a or layer < 2]
                self.assertEqual([p for p, r in enumerate(row) if r], expected)
                record = trace.get(f"layer_{layer}", step.pass_)
                if record is None:
                    self.assertEqual(expected, [])
                    continue
                self.assertEqual(rows(record.positions), expected)
                self.assertEqual(rows(record.ids), [before.canvas[p] for p in expected])
                self.assertEqual((record.layer, record.n_rows, record.output), (layer, len(expected), None))
        self.assertTrue(any(not all(step.active) for step in steps))

    def test_rule_rows_leaves_rows_out(self):
        with model().session(skip_rule="rows", **SLOW) as session, session.trace("layer_0") as trace:
            steps = list(session.start(QUESTION).steps())
        for step in steps[1:]:
            record = trace.get("layer_0", step.pass_)
            self.assertEqual(rows(record.positions), [p for p, a in zip(step.positions, step.active) if a])

    def test_no_result_changes(self):
        with model().session(**SLOW) as session, session.trace(values=False) as trace:
            self.assertEqual(session.generate(QUESTION).all_tokens, model().generate(QUESTION, **SLOW).all_tokens)
        self.assertEqual(trace.passes, list(range(32)))

    def test_choosing_records(self):
        with model().session(**SLOW) as session:
            with session.trace("layer_*_proj", layers=(1, 2), passes=(1, 1)) as trace:
                session.generate(QUESTION)
            self.assertEqual({(r.layer, r.pass_) for r in trace}, {(1, 1), (2, 1)})
            self.assertEqual([r.name for r in trace.find("*_2_q_*")], ["layer_2_q_proj"])
            self.assertIsNone(trace.get("layer_5"))
            count = len(trace)
            session.generate(QUESTION)
            self.assertEqual(len(trace), count)  # it has ended
            seen = []
            with session.trace("logits", on_record=seen.append) as trace:
                session.start(QUESTION).step()
            self.assertEqual((len(trace), [r.name for r in seen]), (0, ["logits"]))
            self.assertEqual(seen[0].layer, -1)
            self.assertRaises(ValueError, trace.who_ran)

    def test_statistics_are_of_the_output(self):
        with model().session(**SLOW) as session, session.trace("layer_3") as trace:
            session.start(QUESTION).step()
        record = trace[0]
        values = flat(record.output)
        self.assertAlmostEqual(record.stats.mean, sum(values) / len(values), places=6)
        self.assertEqual((record.stats.min, record.stats.max), (min(values), max(values)))

    def test_an_exception_comes_out(self):
        with model().session(**SLOW) as session, session.trace("logits", on_record=lambda r: 1 // 0):
            with self.assertRaises(ZeroDivisionError):
                session.generate(QUESTION)

    @needs_numpy
    def test_arrays_are_numpys(self):
        with model().session(**SLOW) as session, session.trace("kv_0") as trace:
            session.start(QUESTION).step()
        record = trace.get("kv_0", part="k")
        self.assertIsInstance(record.output, numpy.ndarray)
        self.assertEqual((record.output.dtype, record.positions.dtype), (numpy.float32, numpy.int32))
        self.assertEqual(record.output.shape, (8, len(record.positions), 32))
        self.assertEqual(model().generate(numpy.array([5, 6, 7])).prompt_tokens, [5, 6, 7])
        self.assertEqual(model().generate([5, 6, 7], gen_length=numpy.int64(8), threshold=numpy.float32(0.5)).nfe,
                         model().generate([5, 6, 7], gen_length=8, threshold=0.5).nfe)

    def test_arrays_without_numpy(self):
        from tokenskip import _arrays

        before, _arrays.numpy = _arrays.numpy, None
        try:
            with model().session(**SLOW) as session, session.trace("layer_0*") as trace:
                session.start(QUESTION).step()
            record = trace.get("layer_0_rope", part="q")
            self.assertIsInstance(record.output, memoryview)
            self.assertEqual((record.output.shape, record.output.format), (record.output_shape, "f"))
            self.assertIsInstance(record.output[1, 2, 3], float)
            self.assertEqual(trace.who_ran().shape, (1, len(record.positions)))
            self.assertEqual(_arrays.empty("f", (0, 4))[0].tolist(), [])
        finally:
            _arrays.numpy = before
