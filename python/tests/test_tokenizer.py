"""The tokenizer, the chat template, decoding by pieces: as the command has them."""

import json
import os
import shutil
import subprocess
import tempfile
import unittest

import tokenskip
from common import COMMAND, DEMO, model, run_command

TEXTS = ["Hello, world", "12 + 30 = 42", "Grüße, naïve café", "北京是中国的首都。", "emoji 🙂 and \t tabs\n\n", "",
         "<|eot_id|> spelled out", "a\0b"]


class TokenizerTest(unittest.TestCase):
    def test_ids_equal_the_commands(self):
        lines = "".join(json.dumps(text) + "\n" for text in TEXTS)
        done = subprocess.run([COMMAND, "tokenize", "-m", DEMO, "--jsonl"], input=lines.encode(), check=True,
                              stdout=subprocess.PIPE)
        expected = [json.loads(line) for line in done.stdout.decode().splitlines()]
        self.assertEqual([model().tokenizer.encode(text, special=True) for text in TEXTS], expected)

    def test_there_and_back(self):
        tokenizer = model().tokenizer
        for text in TEXTS:
            ids = tokenizer.encode(text)
            self.assertEqual(tokenizer.decode(ids), text)
            decoder = tokenizer.decoder()
            self.assertEqual("".join([decoder.push(i) for i in ids] + [decoder.flush()]), text)

    def test_pieces_are_whole_characters(self):
        tokenizer = model().tokenizer
        ids = tokenizer.encode("🙂")
        self.assertGreater(len(ids), 1)
        decoder = tokenizer.decoder()
        self.assertEqual([decoder.push(i) for i in ids], [""] * (len(ids) - 1) + ["🙂"])
        decoder = tokenizer.decoder()
        self.assertEqual((decoder.push(ids[0]), decoder.flush()), ("", "\ufffd"))

    def test_special_tokens(self):
        tokenizer = model().tokenizer
        end = tokenizer.id("<|eot_id|>")
        self.assertEqual(tokenizer.special_tokens["<|eot_id|>"], end)
        self.assertEqual(tokenizer.end_of_turn_id, end)
        self.assertTrue(tokenizer.is_special(end))
        self.assertEqual(tokenizer.token(end), "<|eot_id|>")
        self.assertIsNone(tokenizer.id("no such token"))
        self.assertIsNone(tokenizer.token(10**6))
        self.assertNotIn(end, tokenizer.encode("<|eot_id|>"))
        self.assertEqual(tokenizer.encode("<|eot_id|>", special=True), [end])
        self.assertEqual(tokenizer.decode([end]), "")
        self.assertEqual(tokenizer.decode([end], skip_special=False), "<|eot_id|>")
        self.assertGreater(len(tokenizer), end)

    def test_a_tokenizer_without_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(os.path.join(DEMO, name), folder)
            tokenizer = tokenskip.Tokenizer.load(folder)
        self.assertEqual(tokenizer.encode(TEXTS[1]), model().tokenizer.encode(TEXTS[1]))
        self.assertEqual(tokenizer.render([("user", "Hi")]), model().chat([("user", "Hi")]).text)
        with self.assertRaises(tokenskip.TokenSkipError):
            tokenskip.Tokenizer.load("/nowhere")

    def test_text_that_is_none(self):
        with self.assertRaises(UnicodeEncodeError):
            model().tokenizer.encode("half a pair: \ud800")
        with self.assertRaises(TypeError):
            model().tokenizer.decode(["a"])


class ChatTest(unittest.TestCase):
    MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|eot_id|> 你好"},
                {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Again"}]

    def test_it_is_rendered_as_the_command_does(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(self.MESSAGES, file)
            file.flush()
            expected = run_command("template", "-m", DEMO, "--messages", file.name).decode()
        prompt = model().chat(self.MESSAGES)
        self.assertEqual(model().tokenizer.render(self.MESSAGES), expected)
        self.assertEqual(prompt.text, expected)
        self.assertIsInstance(prompt, list)
        self.assertEqual(model().tokenizer.decode(prompt, skip_special=False), expected)

    def test_spelled_out_tokens_are_text(self):
        end = model().tokenizer.end_of_turn_id
        safe, trusting = model().chat(self.MESSAGES), model().chat(self.MESSAGES, special=True)
        self.assertEqual(trusting.count(end), safe.count(end) + 1)

    def test_what_is_no_message(self):
        for messages in ([{"role": "user"}], [("user", "a\0b")]):
            with self.subTest(messages), self.assertRaises(ValueError):
                model().chat(messages)
        with self.assertRaises(TypeError):
            model().chat([{"role": "user", "content": 3}])
