"""Models that attend by blocks: the options, and what the results say of prompts and storing passes."""
import unittest

from common import golden_model


class Blocks(unittest.TestCase):
    def setUp(self):
        self.model = golden_model("sdar-bf16")

    def test_passes(self):
        steps = []
        result = self.model.generate(list(range(5, 15)), gen_length=11, eos_stop=False, threshold=None,
                                     prompt_rows=4, on_step=steps.append)
        self.assertEqual((result.prompt_passes, result.storing_passes, len(result.tokens)), (2, 3, 11))
        self.assertEqual(result.nfe, 2 + sum(block.nfe for block in result.blocks))
        self.assertEqual([s.is_prompt for s in steps], [True, True] + [False] * (result.nfe - 2))
        self.assertEqual(sum(s.is_storing for s in steps), 3)
        self.assertFalse(any(s.is_refresh for s in steps))
        self.assertEqual(self.model.config.block_length, 4)

    def test_a_preset_leaves_block_starts_alone(self):
        result = self.model.generate([5, 6, 7], gen_length=9, skip_preset="fast")
        self.assertLess(result.skip.token_layers_computed, result.skip.token_layers_total)

    def test_other_caches(self):
        for cache in ("dual", "prefix", "none"):
            with self.assertRaisesRegex(ValueError, "attention by blocks"):
                self.model.generate([5, 6, 7], gen_length=8, cache=cache)


if __name__ == "__main__":
    unittest.main()
