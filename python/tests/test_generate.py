"""Whole generations: to the token those of the command, and of the goldens, which a second implementation wrote."""

import math
import os
import tempfile
import threading
import unittest

import tokenskip
from common import DEMO, QUESTION, SLOW, command_json, counted, golden, golden_model, model

CHANGES = [
    {},
    {"threshold": None},
    {"threshold": None, "steps": 16, "gen_length": 32},
    {"threshold": 0.7, "gen_length": 64},
    {"factor": 1.0},
    {"frechet": 0.1, "gen_length": 32},
    {"entropy_bound": 0.5, "gen_length": 32},
    {"threshold": 0.99, "local_leap": 0.3, "local_radius": 2, "gen_length": 32},
    {"gen_length": 24},
    {"cache": "prefix", "threshold": None, "gen_length": 32},
    {"cache": "none", "threshold": None, "gen_length": 32, "steps": 8},
    {"temperature": 0.7, "seed": 11, "threshold": None, "gen_length": 32},
    {"remasking": "random", "seed": 2**64 - 1, "threshold": None, "gen_length": 32},
    {"eos_stop": False, "gen_length": 64},
    {"skip_preset": "fast", "threshold": None, "gen_length": 64, "block_length": 16},
    {"skip_preset": "seed", "threshold": None, "gen_length": 32},
    {"skip_preset": "fast", "near": 3, "threshold": None, "gen_length": 32},
    {"skip_preset": "careful", "threshold": None, "gen_length": 64, "block_length": 16},
    {"skip_masked": False, "rows_ahead": 1, "threshold": None, "gen_length": 32},
    {"skip_rule": "states", "threshold": None, "gen_length": 32},
    {"skip_rule": "rows", "threshold": None, "gen_length": 32},
    {"rows_margin": 1, "rows_ahead": 2, "threshold": None, "gen_length": 32},
    {"skip_rule": "off", "threshold": None, "gen_length": 32},
    {"skip_layer_k": 0, "threshold": None, "gen_length": 32},
    {"skip_layer_k": 4, "skip_masked": True, "skip_reference": "last-computed", "skip_max_age": 2, "skip_full_every": 5,
     "skip_warm_start": True, "threshold": None, "gen_length": 32},
    {"refresh": "near", "threshold": None, "gen_length": 64, "block_length": 16, "eos_stop": False},
    {"near": 4, "window": 20, "threshold": None, "gen_length": 64, "block_length": 16, "eos_stop": False},
    {"window": 8, "threshold": None, "gen_length": 64, "block_length": 16, "eos_stop": False},
    {"refresh_every": 2, "refresh_rows": 5, "threshold": None, "gen_length": 64, "block_length": 16, "eos_stop": False},
]


class CommandTest(unittest.TestCase):
    def test_results_equal_the_commands(self):
        for options in CHANGES:
            with self.subTest(options):
                mine = model().generate(QUESTION, **options).to_dict()
                self.assertEqual(counted(mine), counted(command_json(DEMO, QUESTION, options)))

    def test_prompts_equal_the_commands(self):
        ids = model().tokenizer.encode("84 + 23")
        self.assertEqual(counted(model().generate(ids, **SLOW).to_dict()), counted(command_json(DEMO, ids, SLOW)))
        for prompt, options in ((QUESTION, {"system": "Be brief."}), ("<|eot_id|>Hello", {"raw": True}),
                                ("<|eot_id|>Hello", {})):
            mine = model().generate(prompt, **options, **SLOW).to_dict()
            self.assertEqual(counted(mine), counted(command_json(DEMO, prompt, {**options, **SLOW})))

    def test_forms_of_a_prompt(self):
        by_text = model().generate(QUESTION)
        for prompt in ([{"role": "user", "content": QUESTION}], [("user", QUESTION)],
                       [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
                       model().chat([("user", QUESTION)]), tuple(model().chat([("user", QUESTION)]))):
            self.assertEqual(model().generate(prompt).tokens, by_text.tokens)


def keywords(options):
    """A golden's options, which have the names of the struct's fields where those are other."""
    names = {"refresh_near": "near", "refresh_window": "window"}
    out = {names.get(name, name): value for name, value in options.items()}
    if out.get("refresh", "near") != "near":
        out.pop("near", None)
    return out


class GoldenTest(unittest.TestCase):
    def check(self, file):
        count = 0
        for case in golden(file)["cases"]:
            with self.subTest(case["name"]):
                expected, options = dict(case["expected"]), keywords(case["options"])
                rest = case.get("canvas", [])[len(case["prompt"]) :] or None
                made = golden_model(case["model"])
                steps = []
                result = made.generate(case["prompt"], generated=rest, on_step=lambda s: steps.append(s), **options)
                self.assertEqual(result.all_tokens, expected["tokens"])
                self.assertEqual(result.prompt_tokens + result.all_tokens, expected["canvas"])
                mine = result.to_dict()
                for name in ("nfe", "mask_residual", "finish_reason", "blocks"):
                    self.assertEqual(mine[name], expected[name])
                for name, value in expected["skip"].items():
                    self.assertEqual(mine["skip"][name], value)
                if "committed" in expected:
                    self.assertEqual([s.committed for s in steps], expected["committed"])
                if "confidence" in expected:
                    for step, values in zip(steps, expected["confidence"]):
                        found = [step.confidences[step.positions.index(p)] for p in step.committed]
                        for a, b in zip(found, values):
                            self.assertAlmostEqual(a, b, delta=2e-5)
                count += 1
        self.assertGreater(count, 10)

    def test_generate(self):
        self.check("generate.json")

    def test_rule_rows(self):
        self.check("generate_rule_rows.json")

    def test_refresh_near(self):
        self.check("generate_near.json")

    def test_transfer(self):
        self.check("generate_transfer.json")


class CallbackTest(unittest.TestCase):
    def test_steps_are_told(self):
        steps = []
        result = model().generate(QUESTION, on_step=steps.append, **SLOW)
        self.assertEqual(len(steps), result.nfe)
        self.assertEqual([s.pass_ for s in steps], list(range(result.nfe)))
        self.assertEqual(steps[-1].text, result.text)
        self.assertEqual("".join(s.new_text for s in steps), result.text)
        self.assertEqual([s.n_active for s in steps[1:]], result.skip.active)

    def test_a_true_value_ends_it(self):
        result = model().generate(QUESTION, on_step=lambda s: s.pass_ == 2, **SLOW)
        self.assertEqual((result.nfe, result.finish_reason, result.mask_residual), (3, "cancelled", 29))

    def test_an_exception_comes_out(self):
        passes = []

        def on_step(step):
            passes.append(step.pass_)
            if step.pass_ == 1:
                raise KeyError("of a callback")

        with self.assertRaisesRegex(KeyError, "of a callback"):
            model().generate(QUESTION, on_step=on_step, **SLOW)
        self.assertEqual(passes, [0, 1])

    def test_cancel_is_asked(self):
        event = threading.Event()
        event.set()
        self.assertEqual(model().generate(QUESTION, cancel=event).nfe, 0)
        asked = []
        result = model().generate(QUESTION, cancel=lambda: asked.append(1) or len(asked) > 3, **SLOW)
        self.assertEqual((result.nfe, result.finish_reason), (3, "cancelled"))

    def test_a_rule_of_ones_own(self):
        """The most confident two: the schedule with half the steps."""
        seen = []

        def rule(selection):
            seen.append(selection)
            return sorted(selection.candidates, key=lambda c: -c.confidence)[:2]

        mine = model().generate(QUESTION, on_select=rule, gen_length=32)
        schedule = model().generate(QUESTION, threshold=None, steps=16, gen_length=32)
        self.assertEqual(mine.all_tokens, schedule.all_tokens)
        self.assertEqual(mine.nfe, 16)
        self.assertEqual([len(s.candidates) for s in seen], list(range(32, 0, -2)))
        for selection in seen:  # the best one's doubt, spread over all ids, is the most that its entropy can be
            for c in selection.candidates:
                doubt = 1 - c.confidence
                most = -c.confidence * math.log(c.confidence)
                most += doubt * math.log((model().config.embedding_size - 1) / doubt) if doubt > 0 else 0
                self.assertTrue(0 <= c.entropy <= most * 1.001 + 1e-4, c)

    def test_the_librarys_rules(self):
        for transfer, options in (("threshold", {"threshold": 0.8}), ("factor", {"factor": 1.0}),
                                  ("frechet", {"frechet": 0.1}), ("entropy_bound", {"entropy_bound": 0.5}),
                                  ("local_leap", {"threshold": 0.99, "local_leap": 0.3, "local_radius": 2})):
            mine = model().generate(QUESTION, on_select=lambda s: tokenskip.select(s.candidates, transfer, **options))
            self.assertEqual(mine.all_tokens, model().generate(QUESTION, **options).all_tokens)
        # positions do as well as candidates
        mine = model().generate(QUESTION, on_select=lambda s: [c.position for c in s.candidates if c.confidence >= 0.9])
        self.assertEqual(mine.all_tokens, model().generate(QUESTION).all_tokens)

    def test_a_rule_that_fails(self):
        with self.assertRaisesRegex(ValueError, "position 3, which is none of the candidates"):
            model().generate(QUESTION, on_select=lambda s: [3])
        with self.assertRaises(ZeroDivisionError):
            model().generate(QUESTION, on_select=lambda s: 1 // 0)

    def test_nobody_chosen(self):
        self.assertEqual(model().generate(QUESTION, on_select=lambda s: None, gen_length=8).nfe, 8)


class OptionTest(unittest.TestCase):
    def test_unknown_options_are_named(self):
        with self.assertRaisesRegex(TypeError, r"generate\(\) has no option 'gen_lenght' \(did you mean 'gen_length'"):
            model().generate(QUESTION, gen_lenght=8)
        with self.assertRaisesRegex(TypeError, "'zzz', 'yyy'"):
            model().session(zzz=1, yyy=2)
        for method in (model().stream, model().batch().submit):
            with self.assertRaisesRegex(TypeError, "has no option 'topk'"):
                method(QUESTION, topk=2)

    def test_values_that_make_no_sense(self):
        for options in ({"gen_length": 0}, {"steps": -1}, {"cache": "triple"}, {"threshold": 1.5}, {"seed": -1},
                        {"threshold": 0.5, "factor": 1.0}, {"skip_policy": "keep"}, {"frechet": -1.0},
                        {"entropy_bound": -0.5}, {"frechet": 0.1, "entropy_bound": 0.1}, {"local_radius": 3},
                        {"local_leap": 0.5, "factor": 1.0}, {"skip_preset": "slow"},
                        {"skip_layer_k": 3, "rows_ahead": 1}, {"near": 3, "refresh": "full"}, {"gen_length": 2**40},
                        {"threshold": float("nan")}, {"no_threshold": True, "threshold": 0.5},
                        {"gen_length": 48}, {"block_length": 7}, {"steps": 31}, {"cache": "none", "skip_rule": "rows"}):
            with self.subTest(options), self.assertRaises(ValueError):
                model().generate(QUESTION, **options)
        for options in ({"gen_length": "8"}, {"gen_length": 8.0}, {"gen_length": True}, {"temperature": "hot"},
                        {"eos_stop": "yes"}):
            with self.subTest(options), self.assertRaises(TypeError):
                model().generate(QUESTION, **options)

    def test_golden_usage_errors_are_refused(self):
        cases = golden("generate.json")["usage_errors"]
        for case in cases:
            with self.subTest(case["options"]), self.assertRaises(ValueError):
                golden_model("mha-f32").session(**case["options"])
        self.assertTrue(cases)

    def test_other_names(self):
        by_schedule = model().generate(QUESTION, **SLOW).tokens
        self.assertEqual(model().generate(QUESTION, no_threshold=True, gen_length=32).tokens, by_schedule)
        self.assertEqual(model().generate(QUESTION, skip_reference="last_step", **SLOW).tokens, by_schedule)

    def test_generated(self):
        with self.assertRaisesRegex(ValueError, "generated has 3 ids, and gen_length is 32"):
            model().generate(QUESTION, generated=[1, 2, 3], **SLOW)
        mask = model().config.mask_token_id
        fixed = [mask] * 32
        fixed[10:13] = [20, 21, 22]
        result = model().generate(QUESTION, generated=fixed, eos_stop=False, **SLOW)
        self.assertEqual(result.tokens[10:13], [20, 21, 22])


class ModelTest(unittest.TestCase):
    def test_what_a_model_says(self):
        config = model().config
        self.assertEqual((config.n_layers, config.d_model, config.mask_token_id), (12, 256, 1020))
        self.assertEqual((model().dtype, model().device_name[:3]), ("f32", "CPU"))
        self.assertIn("demo-model", repr(model()))

    def test_without_a_tokenizer(self):
        made = golden_model("mha-f32")
        self.assertIsNone(made.tokenizer)
        result = made.generate([5, 6, 7], gen_length=8)
        self.assertIsNone(result.text)
        self.assertEqual(len(result.all_tokens), 8)
        for call in (lambda: made.generate("Hello"), lambda: made.chat([("user", "Hello")])):
            with self.assertRaisesRegex(ValueError, "no tokenizer"):
                call()
        self.assertEqual(list(made.stream([5, 6, 7], gen_length=8))[-1].text, None)

    def test_loading_is_told_and_cancelled(self):
        told = []
        tokenskip.Model.load(DEMO, device="cpu", threads=1, progress=lambda done, of: told.append((done, of))).close()
        self.assertEqual(told[-1][0], told[-1][1])
        with self.assertRaises(tokenskip.CancelledError):
            tokenskip.Model.load(DEMO, device="cpu", cancel=lambda: True)
        with self.assertRaises(ZeroDivisionError):
            tokenskip.Model.load(DEMO, device="cpu", progress=lambda done, of: 1 // 0)

    def test_devices(self):
        found = tokenskip.devices()
        self.assertEqual(found[0].device, "cpu")
        self.assertTrue(all(d.unusable or d.name for d in found))

    def test_arguments(self):
        for arguments in ({"device": "gpu"}, {"device": "cpu:1"}, {"dtype": "f16"}, {"weights": "q5"},
                          {"threads": -1}):
            with self.subTest(arguments), self.assertRaises(ValueError):
                tokenskip.Model.load(DEMO, **arguments)
        with self.assertRaises(TypeError):
            tokenskip.Model.load(DEMO, colour="red")
        with self.assertRaises(TypeError):
            model().generate(b"bytes")
        with self.assertRaisesRegex(TypeError, "token ids"):
            model().generate(["a", "b"])


class ErrorTest(unittest.TestCase):
    def test_each_status_is_a_class(self):
        with self.assertRaises(tokenskip.FileError) as caught:
            tokenskip.Model.load("/nowhere/at/all")
        self.assertIsInstance(caught.exception, (OSError, tokenskip.TokenSkipError))
        self.assertIn("/nowhere/at/all", str(caught.exception))
        self.assertIn("/nowhere/at/all", caught.exception.file)
        with self.assertRaises(tokenskip.ArgumentError) as caught:
            model().generate([5, 999999])
        self.assertIsInstance(caught.exception, ValueError)
        self.assertIn("999999", str(caught.exception))

    def test_the_place_is_told(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
                file.write('{"a": nothing}')
            with self.assertRaises(tokenskip.JsonError) as caught:
                tokenskip.Model.load(folder)
            self.assertEqual(caught.exception.offset, 6)
            self.assertTrue(caught.exception.file.endswith("config.json"))
