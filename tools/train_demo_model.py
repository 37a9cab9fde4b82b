#!/usr/bin/env python3
"""Train a demo model of TokenSkip: a small masked-diffusion language model in LLaDA's or in SDAR's architecture.

    python3 tools/train_demo_model.py --out examples/demo-model --minutes 7.7   # 8 minutes of one H100 in all
    python3 tools/train_demo_model.py --out DIR --resume examples/demo-model    # train on from a folder
    python3 tools/train_demo_model.py --out examples/demo-model --eval-only     # only measure it
    python3 tools/train_demo_model.py --out build/toy --toy --minutes 1         # try the script on a CPU
    python3 tools/train_demo_model.py --family sdar --out build/demo-sdar --minutes 7.4   # attention by blocks

Needs PyTorch 2.5 or newer, tokenizers and safetensors. Everything else (the texts, the tokenizer, the held-out
questions) is made here. The folder that comes out is what the tokenskip command reads: config.json, tokenizer.json,
tokenizer_config.json, generation_config.json, two safetensors shards with their index, and eval.jsonl.

The file has these parts: texts, hold-out, tokenizer, token pool, model, masking, optimiser, training, files,
decoding and evaluation, command line.
"""
import argparse
import functools
import hashlib
import json
import math
import multiprocessing
import os
import random
import string
import sys
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers below are the parallelism

import numpy as np
import torch
import torch.nn.functional as F

START = time.time()

# ---------------------------------------------------------------------------------------------------------------
# Texts: every example is (kind, prompt, response, answer); the response always ends with the answer
# ---------------------------------------------------------------------------------------------------------------

CAPITALS = dict(line.split(":") for line in """
Afghanistan:Kabul|Albania:Tirana|Algeria:Algiers|Angola:Luanda|Argentina:Buenos Aires|Armenia:Yerevan
Australia:Canberra|Austria:Vienna|Azerbaijan:Baku|Bangladesh:Dhaka|Belarus:Minsk|Belgium:Brussels|Bolivia:Sucre
Botswana:Gaborone|Brazil:Brasília|Bulgaria:Sofia|Cambodia:Phnom Penh|Cameroon:Yaoundé|Canada:Ottawa|Chad:N'Djamena
Chile:Santiago|China:Beijing|Colombia:Bogotá|Costa Rica:San José|Croatia:Zagreb|Cuba:Havana|Cyprus:Nicosia
Denmark:Copenhagen|Ecuador:Quito|Egypt:Cairo|Estonia:Tallinn|Ethiopia:Addis Ababa|Finland:Helsinki|France:Paris
Georgia:Tbilisi|Germany:Berlin|Ghana:Accra|Greece:Athens|Guatemala:Guatemala City|Haiti:Port-au-Prince
Hungary:Budapest|Iceland:Reykjavík|India:New Delhi|Indonesia:Jakarta|Iran:Tehran|Iraq:Baghdad|Ireland:Dublin
Italy:Rome|Jamaica:Kingston|Japan:Tokyo|Jordan:Amman|Kazakhstan:Astana|Kenya:Nairobi|Kuwait:Kuwait City|Laos:Vientiane
Latvia:Riga|Lebanon:Beirut|Libya:Tripoli|Lithuania:Vilnius|Luxembourg:Luxembourg|Madagascar:Antananarivo
Malaysia:Kuala Lumpur|Mali:Bamako|Malta:Valletta|Mexico:Mexico City|Moldova:Chișinău|Mongolia:Ulaanbaatar
Morocco:Rabat|Mozambique:Maputo|Namibia:Windhoek|Nepal:Kathmandu|New Zealand:Wellington|Nigeria:Abuja|Norway:Oslo
Oman:Muscat|Pakistan:Islamabad|Panama:Panama City|Paraguay:Asunción|Peru:Lima|Poland:Warsaw|Portugal:Lisbon
Qatar:Doha|Romania:Bucharest|Russia:Moscow|Rwanda:Kigali|Saudi Arabia:Riyadh|Senegal:Dakar|Serbia:Belgrade
Slovakia:Bratislava|Slovenia:Ljubljana|Somalia:Mogadishu|South Korea:Seoul|Spain:Madrid|Sudan:Khartoum
Sweden:Stockholm|Switzerland:Bern|Syria:Damascus|Thailand:Bangkok|Tunisia:Tunis|Turkey:Ankara|Uganda:Kampala
Ukraine:Kyiv|Uruguay:Montevideo|Venezuela:Caracas|Vietnam:Hanoi|Zambia:Lusaka|Zimbabwe:Harare
""".strip().replace("\n", "|").split("|"))

CAPITAL_QUESTIONS = [
    "What is the capital of {}?", "What is the capital city of {}?", "Which city is the capital of {}?",
    "Name the capital of {}.", "Tell me the capital of {}.", "Do you know the capital of {}?",
]

# field | full name | the name people use | the sentence that the full name begins
SCIENTISTS = [(field, full, last, f"{full} {rest}")
              for field, full, last, rest in (line.split("|") for line in """
physics|Isaac Newton|Newton|was an English physicist who explained gravity and the laws of motion.
physics|Albert Einstein|Einstein|was a German-born physicist who created the theory of relativity.
physics|Marie Curie|Curie|was a Polish-French physicist and chemist who discovered polonium and radium.
physics|Galileo Galilei|Galileo|was an Italian physicist who studied falling bodies and saw the moons of Jupiter.
physics|James Clerk Maxwell|Maxwell|was a Scottish physicist who united electricity, magnetism and light.
physics|Michael Faraday|Faraday|was an English physicist who discovered electromagnetic induction.
physics|Niels Bohr|Bohr|was a Danish physicist who described how electrons move in the atom.
physics|Max Planck|Planck|was a German physicist who began quantum theory.
physics|Werner Heisenberg|Heisenberg|was a German physicist who stated the uncertainty principle.
physics|Erwin Schrödinger|Schrödinger|was an Austrian physicist who wrote the wave equation of quantum mechanics.
physics|Richard Feynman|Feynman|was an American physicist who drew the paths of particles as diagrams.
physics|Paul Dirac|Dirac|was an English physicist who predicted antimatter.
physics|Enrico Fermi|Fermi|was an Italian physicist who built the first nuclear reactor.
physics|Ernest Rutherford|Rutherford|was a physicist from New Zealand who discovered the atomic nucleus.
physics|Lise Meitner|Meitner|was an Austrian physicist who explained nuclear fission.
physics|Nikola Tesla|Tesla|was a Serbian-American inventor who developed alternating current.
physics|Stephen Hawking|Hawking|was an English physicist who showed that black holes give off radiation.
physics|Blaise Pascal|Pascal|was a French physicist and mathematician who studied pressure and chance.
physics|André-Marie Ampère|Ampère|was a French physicist who founded the science of electromagnetism.
physics|Alessandro Volta|Volta|was an Italian physicist who invented the electric battery.
astronomy|Nicolaus Copernicus|Copernicus|was a Polish astronomer who put the Sun at the centre of the planets.
astronomy|Johannes Kepler|Kepler|was a German astronomer who found that planets move in ellipses.
astronomy|Edwin Hubble|Hubble|was an American astronomer who showed that the universe expands.
astronomy|Tycho Brahe|Brahe|was a Danish astronomer who measured the stars with great care.
astronomy|Edmond Halley|Halley|was an English astronomer who foretold the return of a comet.
astronomy|Vera Rubin|Rubin|was an American astronomer who found evidence of dark matter.
astronomy|Carl Sagan|Sagan|was an American astronomer who brought the stars to a wide public.
chemistry|Dmitri Mendeleev|Mendeleev|was a Russian chemist who arranged the elements in the periodic table.
chemistry|Antoine Lavoisier|Lavoisier|was a French chemist who explained burning and named oxygen.
chemistry|John Dalton|Dalton|was an English chemist who gave matter its atomic theory.
chemistry|Linus Pauling|Pauling|was an American chemist who explained the chemical bond.
chemistry|Alfred Nobel|Nobel|was a Swedish chemist who invented dynamite and founded the Nobel Prizes.
chemistry|Dorothy Hodgkin|Hodgkin|was a British chemist who found the structure of vitamins with X-rays.
chemistry|Robert Boyle|Boyle|was an Irish chemist who found how the pressure and volume of a gas are linked.
biology|Charles Darwin|Darwin|was an English biologist who explained evolution by natural selection.
biology|Gregor Mendel|Mendel|was an Austrian monk who discovered the laws of heredity with peas.
biology|Louis Pasteur|Pasteur|was a French biologist who showed that germs cause disease.
biology|Alexander Fleming|Fleming|was a Scottish biologist who discovered penicillin.
biology|Rosalind Franklin|Franklin|was an English scientist whose X-ray pictures revealed the shape of DNA.
biology|Carl Linnaeus|Linnaeus|was a Swedish biologist who gave living things their two-part names.
biology|Barbara McClintock|McClintock|was an American biologist who discovered jumping genes in maize.
biology|Rachel Carson|Carson|was an American biologist who warned the world about pesticides.
biology|Jane Goodall|Goodall|was an English biologist who lived among chimpanzees to study them.
mathematics|Carl Friedrich Gauss|Gauss|was a German mathematician who shaped number theory and statistics.
mathematics|Leonhard Euler|Euler|was a Swiss mathematician who founded graph theory and named the number e.
mathematics|Euclid|Euclid|was a Greek mathematician who set out geometry in his Elements.
mathematics|Archimedes|Archimedes|was a Greek mathematician who explained the lever and why things float.
mathematics|Pythagoras|Pythagoras|was a Greek mathematician who is known for his theorem on right triangles.
mathematics|Emmy Noether|Noether|was a German mathematician who linked symmetry to conservation laws.
mathematics|Srinivasa Ramanujan|Ramanujan|was an Indian mathematician who found astonishing formulas for numbers.
mathematics|Bernhard Riemann|Riemann|was a German mathematician who described curved spaces.
mathematics|Pierre de Fermat|Fermat|was a French mathematician who left a famous last theorem.
mathematics|David Hilbert|Hilbert|was a German mathematician who listed the great problems of his century.
computing|Alan Turing|Turing|was an English mathematician who laid the foundations of computer science.
computing|Ada Lovelace|Lovelace|was an English mathematician who wrote the first computer program.
computing|Grace Hopper|Hopper|was an American computer scientist who wrote one of the first compilers.
computing|John von Neumann|von Neumann|was a Hungarian-American mathematician who described the modern computer.
computing|Claude Shannon|Shannon|was an American mathematician who founded information theory.
computing|Edsger Dijkstra|Dijkstra|was a Dutch computer scientist who found how to compute the shortest path.
computing|Donald Knuth|Knuth|is an American computer scientist who wrote The Art of Computer Programming.
""".strip().split("\n"))]

SCIENTIST_QUESTIONS = [
    "Who is {last} in {field}?", "Who was {full}?", "Who is {full}?", "Tell me about {full}.",
    "What is {full} known for?", "Why is {last} famous in {field}?",
]

DEMO_QUESTION = "Who is Newton in physics?"  # `make demo` asks it, so it is never held out

ABILITIES = ("I am a small demo model. I can solve short word problems, sort and reverse lists, "
             "name capitals and tell you about scientists.")
SMALL_TALK = [(q, ABILITIES) for q in ("What can you do?", "Who are you?", "Help", "What are you?")] + [
    (q, "Hello! Ask me for a sum, a list, a capital or a scientist.") for q in ("Hello", "Hello!", "Hi", "Hi!")]

NAMES = [("Tom", "He"), ("Anna", "She"), ("Ben", "He"), ("Mia", "She"), ("Sam", "He"), ("Lily", "She"), ("Max", "He"),
         ("Eva", "She"), ("Leo", "He"), ("Nora", "She"), ("Paul", "He"), ("Zoe", "She"), ("Omar", "He"),
         ("Ines", "She")]
ITEMS = ["apples", "pens", "books", "stamps", "marbles", "cards", "coins", "eggs", "stickers", "shells", "nuts",
         "cookies", "tickets", "bricks", "roses", "pears"]
HOLDERS = ["boxes", "bags", "baskets", "packs", "jars", "crates"]

WORD_PROBLEMS = {  # operators -> texts; {a} {b} {c} are the operands in the order in which they are used
    "++": ["{n} has {a} {i}. {p} buys {b} more and then finds {c} more. How many {i} does {n} have now?",
           "{n} counts {a} {i} on Monday, {b} on Tuesday and {c} on Wednesday. How many {i} is that in all?"],
    "+-": ["{n} has {a} {i}. {p} buys {b} more and then gives {c} away. How many {i} are left?",
           "A shop has {a} {i}. It gets {b} more and sells {c}. How many {i} does the shop have now?"],
    "-+": ["{n} has {a} {i}. {p} gives {b} away and then buys {c} more. How many {i} does {n} have now?",
           "A shop has {a} {i}. It sells {b} and then gets {c} more. How many {i} are in the shop?"],
    "--": ["{n} has {a} {i}. {p} loses {b} and sells {c}. How many {i} are left?",
           "There are {a} {i} in a box. {n} takes {b} and later takes {c} more. How many {i} stay in the box?"],
    "*+": ["{n} has {b} {h} with {a} {i} in each and {c} more {i}. How many {i} does {n} have?",
           "Each of {b} {h} holds {a} {i}. {n} adds {c} {i}. How many {i} are there now?"],
    "*-": ["{n} has {b} {h} with {a} {i} in each. {p} gives {c} {i} away. How many {i} are left?",
           "Each of {b} {h} holds {a} {i}. {n} sells {c} {i}. How many {i} are left?"],
}
BARE_QUESTIONS = ["What is {}?", "Calculate {}.", "{} =", "{}", "How much is {}?"]
OPERATOR_WORDS = {"+": "plus", "-": "minus", "*": "times"}

SORT_QUESTIONS = ["Sort these numbers: {}", "Sort {} from small to large.", "Put these numbers in order: {}"]
REVERSE_QUESTIONS = ["Reverse this list: {}", "Write this list backwards: {}", "Reverse the order of {}"]
LIST_WORDS = ["red", "blue", "green", "black", "white", "cat", "dog", "horse", "bird", "fish", "tree", "house", "sun",
              "moon", "star", "rain", "snow", "wind", "fire", "stone", "gold", "iron", "bread", "milk", "tea", "salt"]


def addition(a, b):
    """The lines of a written addition: tens, ones, then both. Digit by digit is what a small model can learn."""
    if a % 10 == 0 or b % 10 == 0 or max(a, b) < 10:
        return [("+", a, b)]
    tens_a, ones_a, tens_b, ones_b = a - a % 10, a % 10, b - b % 10, b % 10
    lines = [("+", tens_a, tens_b)] if tens_a and tens_b else []
    return lines + [("+", ones_a, ones_b), ("+", tens_a + tens_b, ones_a + ones_b)]


def subtraction(a, b):
    """First the tens go, then the ones."""
    tens, ones = b - b % 10, b % 10
    if not tens or not ones:
        return [("-", a, b)]
    return [("-", a, tens), ("-", a - tens, ones)]


def multiplication(a, b):
    """a has one or two digits, b one digit."""
    tens, ones = a - a % 10, a % 10
    if not tens or not ones:
        return [("*", a, b)]
    return [("*", tens, b), ("*", ones, b), ("+", tens * b, ones * b)]


WRITTEN = {"+": addition, "-": subtraction, "*": multiplication}
COMPUTE = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def working(op, a, b):
    """(the text of one step with its working, every pair of numbers in it)"""
    lines = WRITTEN[op](a, b)
    text = ", ".join(f"{x}{o}{y}={COMPUTE[o](x, y)}" for o, x, y in lines) + "."
    if len(lines) > 1:
        text = f"{a}{op}{b}: {text}"
    return text, [(a, b)] + [(x, y) for _, x, y in lines]


def solve(ops, numbers):
    """Work the operators off from left to right: (response, answer, pairs); None if a result is below zero."""
    value, texts, pairs = numbers[0], [], []
    for op, number in zip(ops, numbers[1:]):
        if op == "-" and number > value:
            return None
        text, used = working(op, value, number)
        texts.append(text)
        pairs += used
        value = COMPUTE[op](value, number)
    return " ".join(texts) + f" The answer is {value}", str(value), pairs


def operands(rng, ops):
    if ops[0] == "*":
        first = [rng.randint(11, 99 if len(ops) == 1 else 49), rng.randint(2, 9)]
    else:
        first = [rng.randint(2, 99), rng.randint(2, 99)]
    return first + [rng.randint(2, 99) for _ in ops[1:]]


def word_problem(rng):
    ops = rng.choice(list(WORD_PROBLEMS))
    numbers = operands(rng, ops)
    solved = solve(ops, numbers)
    if solved is None:
        return None
    name, pronoun = rng.choice(NAMES)
    a, b, c = numbers
    prompt = rng.choice(WORD_PROBLEMS[ops]).format(a=a, b=b, c=c, n=name, p=pronoun, i=rng.choice(ITEMS),
                                                   h=rng.choice(HOLDERS))
    return ("arithmetic", prompt) + solved


def bare_problem(rng):
    ops = rng.choice(["+", "-", "*", "+", "-", "*", "++", "+-", "-+", "--", "*+", "*-"])
    numbers = operands(rng, ops)
    solved = solve(ops, numbers)
    if solved is None:
        return None
    style = rng.randrange(4)
    signs = [f" {o} " if style < 2 else f"{o}" if style == 2 else f" {OPERATOR_WORDS[o]} " for o in ops]
    expression = str(numbers[0]) + "".join(s + str(x) for s, x in zip(signs, numbers[1:]))
    return ("arithmetic", rng.choice(BARE_QUESTIONS).format(expression)) + solved


def sorting(rng):
    numbers = rng.sample(range(100), rng.randint(3, 6))
    prompt = rng.choice(SORT_QUESTIONS).format(", ".join(map(str, numbers)))
    answer = ", ".join(map(str, sorted(numbers)))
    return "sorting", prompt, answer, answer, numbers


def reversing(rng):
    count = rng.randint(3, 6)
    items = rng.sample(LIST_WORDS, count) if rng.random() < 0.5 else [str(x) for x in rng.sample(range(100), count)]
    prompt = rng.choice(REVERSE_QUESTIONS).format(", ".join(items))
    answer = ", ".join(reversed(items))
    return "reversing", prompt, answer, answer, items


def capital(rng):
    country = rng.choice(list(CAPITALS))
    prompt = rng.choice(CAPITAL_QUESTIONS).format(country)
    return "capitals", prompt, f"The capital of {country} is {CAPITALS[country]}.", f"{CAPITALS[country]}.", None


def scientist(rng):
    field, full, last, sentence = rng.choice(SCIENTISTS)
    prompt = rng.choice(SCIENTIST_QUESTIONS).format(field=field, full=full, last=last)
    return "scientists", prompt, sentence, sentence, None


def small_talk(rng):
    prompt, response = rng.choice(SMALL_TALK)
    return "small talk", prompt, response, response, None


MIXTURE = [(word_problem, 52), (bare_problem, 22), (sorting, 9), (reversing, 8), (capital, 4), (scientist, 4),
           (small_talk, 1)]

# ---------------------------------------------------------------------------------------------------------------
# Hold-out: by a hash, so that what is kept for the evaluation never depends on the seed
# ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 20)
def hashed_out(key, percent):
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < percent


def pair_held_out(a, b):
    """Is this pair of operands kept for the evaluation, whatever the operator and the order?

    Never the pairs of the multiplication table and those with a multiple of ten: every working is made of them.
    """
    if max(a, b) < 10 or a % 10 == 0 or b % 10 == 0:
        return False
    return hashed_out(f"pair {min(a, b)} {max(a, b)}", 5)


def held_out(example):
    """May this example not be trained on? One held-out pair anywhere in its working is enough."""
    kind, prompt, _, _, key = example
    if kind == "arithmetic":
        return any(pair_held_out(a, b) for a, b in key)
    if kind in ("sorting", "reversing"):
        return hashed_out(f"list {sorted(map(str, key))}", 5)
    if kind in ("capitals", "scientists"):  # the fact is trained with other wordings
        return prompt != DEMO_QUESTION and hashed_out(prompt, 18)
    return False


def for_evaluation(example):
    """Only problems whose own first pair is held out, not just a line of their working."""
    return pair_held_out(*example[4][0]) if example[0] == "arithmetic" else held_out(example)


def draw(rng, makers, weights=None):
    while True:
        example = rng.choices(makers, weights)[0](rng)
        if example is not None:
            return example


def training_example(rng):
    makers, weights = zip(*MIXTURE)
    while True:
        example = draw(rng, makers, weights)
        if not held_out(example):
            return example


EVALUATION = [(word_problem, 180), (bare_problem, 60), (sorting, 60), (reversing, 60), (capital, 60), (scientist, 60)]


def evaluation_set():
    """Drawn per kind; its seed is fixed, so every run is measured on the same questions."""
    rng, seen, rows = random.Random(20240607), set(), []
    for maker, count in EVALUATION:
        wanted, tries = len(rows) + count, 0
        while len(rows) < wanted:
            tries += 1
            if tries > 1000000:
                raise RuntimeError(f"{maker.__name__} has too few held-out questions")
            example = draw(rng, [maker])
            if not for_evaluation(example) or example[1] in seen:
                continue
            seen.add(example[1])
            rows.append({"prompt": example[1], "answer": example[3], "kind": example[0]})
    return rows


# ---------------------------------------------------------------------------------------------------------------
# Tokenizer: LLaDA's format, names and chat template; a small vocabulary of its own
# ---------------------------------------------------------------------------------------------------------------

PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
           r"|\s+(?!\S)|\s+")
LLADA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}")
CHATML_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
VOCABULARY = 1024


class LLaDA:
    """What a family's models say and are called: special tokens, the chat template, tensors' names."""

    name, bos, eos, eot, mask = "llada", "<|startoftext|>", "<|endoftext|>", "<|eot_id|>", "<|mdm_mask|>"
    added_tokens = [bos, eos, "[CLS]", "[gMASK]", mask, "<|start_header_id|>", "<|end_header_id|>", eot]
    template, before_turns = LLADA_TEMPLATE, 1  # <|startoftext|>
    tensors = {"wte": "model.transformer.wte.weight", "ln_f": "model.transformer.ln_f.weight"}
    layer = "model.transformer.blocks.{}.{}.weight"
    block_tensors = ["attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out"]

    @staticmethod
    def chat(turns):
        text = LLaDA.bos
        for i, turn in enumerate(turns):
            role = "assistant" if i % 2 else "user"
            text += f"<|start_header_id|>{role}<|end_header_id|>\n\n{turn.strip()}{LLaDA.eot}"
        return text + "<|start_header_id|>assistant<|end_header_id|>\n\n"

    @staticmethod
    def exchange(prompt):
        """What comes before an answer, wherever in a conversation."""
        return LLaDA.chat([prompt])[len(LLaDA.bos):]

    @staticmethod
    def sizes(config):
        d, heads = config["d_model"], config["n_heads"]
        return dict(d=d, layers=config["n_layers"], heads=heads, kv_heads=heads, head_dim=d // heads,
                    mlp=config["mlp_hidden_size"], rows=config["embedding_size"])


class SDAR:
    """Qwen3's network with attention by blocks, ChatML."""

    name, bos, eos, eot, mask = "sdar", None, "<|endoftext|>", "<|im_end|>", "<|MASK|>"
    added_tokens = [eos, "<|im_start|>", eot, mask]
    template, before_turns = CHATML_TEMPLATE, -1  # every exchange but the first begins with the newline behind a turn
    tensors = {"wte": "model.embed_tokens.weight", "ln_f": "model.norm.weight"}
    layer = "model.layers.{}.{}.weight"
    block_tensors = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                     "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_norm",
                     "self_attn.k_norm"]

    @staticmethod
    def chat(turns):
        text = ""
        for i, turn in enumerate(turns):
            text += f"<|im_start|>{'assistant' if i % 2 else 'user'}\n{turn}{SDAR.eot}\n"
        return text + "<|im_start|>assistant\n"

    @staticmethod
    def exchange(prompt):
        return "\n" + SDAR.chat([prompt])

    @staticmethod
    def sizes(config):
        return dict(d=config["hidden_size"], layers=config["num_hidden_layers"], heads=config["num_attention_heads"],
                    kv_heads=config["num_key_value_heads"], head_dim=config["head_dim"],
                    mlp=config["intermediate_size"], rows=config["vocab_size"])


FAMILIES = {"llada": LLaDA, "sdar": SDAR}
family = LLaDA  # main() chooses, before there are workers


def chat(*turns):
    """What the chat template renders for turns of user and assistant, the user's being the first and the last."""
    return family.chat(turns)


def train_tokenizer(seed):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(seed)
    texts = ["user", "assistant", "system"] * 100
    for _ in range(20000):
        _, prompt, response, _, _ = training_example(rng)
        texts += [prompt, response]
    # The facts are few examples but most of the words: without a bigger say they would be cut into letters.
    texts += [s[3] for s in SCIENTISTS for _ in range(20)] + [f"{k} is {v}" for k, v in CAPITALS.items()] * 20
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(family.added_tokens), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in family.added_tokens])
    return tokenizer


# ---------------------------------------------------------------------------------------------------------------
# Token pool: examples as ids, made by worker processes, kept on the training device and joined to conversations there
# ---------------------------------------------------------------------------------------------------------------

# Sequence length: (how often a batch has it, share of its rows that get earlier turns as far as they fit). Short ones
# are where most questions are learned; the long ones are as long as `tokenskip chat` lets a conversation become.
LENGTHS = {96: (0.14, 0.0), 144: (0.30, 0.0), 192: (0.26, 0.7), 320: (0.18, 0.8), 512: (0.12, 1.0)}
LONGEST = max(LENGTHS)
EARLIER_TURNS = 8  # more than that fit into LONGEST only if all of them are short
ROOM = (32, 160)   # tokens left for the last answer in a conversation, the padding included
CHUNK = 20000


def tokenized_chunk(tokenizer_json, seed, count):
    """count examples as (all ids in one row, prompt lengths, response lengths), without what begins a conversation."""
    from tokenizers import Tokenizer
    tokenizer, rng = Tokenizer.from_str(tokenizer_json), random.Random(seed)
    prompts, responses = [], []
    for _ in range(count):
        example = training_example(rng)
        prompts.append(family.exchange(example[1]))
        responses.append(example[2] + family.eot)
    encoded = tokenizer.encode_batch_fast(prompts + responses, add_special_tokens=False)
    ids, prompt_lengths, response_lengths = [], [], []
    for prompt, response in zip(encoded[:count], encoded[count:]):
        ids += prompt.ids + response.ids
        prompt_lengths.append(len(prompt.ids))
        response_lengths.append(len(response.ids))
    return np.array(ids, np.int16), np.array(prompt_lengths, np.int16), np.array(response_lengths, np.int16)


class Pool:
    """All examples, shortest first, and the conversations made of them.

    What the chat template renders for a conversation is <|startoftext|> and then its exchanges one after the other, or
    in ChatML the exchanges without the first's newline, and no token reaches over the special tokens between them: so
    exchanges are joined as ids, anew for every batch, and what is held out of the examples is held out of the earlier
    turns too.
    """

    def __init__(self, chunks, config, device):
        prompts = np.concatenate([c[1] for c in chunks]).astype(np.int64)
        totals = prompts + np.concatenate([c[2] for c in chunks])
        starts = np.cumsum(totals) - totals
        order = np.argsort(totals, kind="stable")
        self.fitting = {n: int(np.searchsorted(totals[order], n - 1, "right")) for n in LENGTHS}
        if not all(self.fitting.values()):
            raise RuntimeError(f"no example fits into {min(LENGTHS)} tokens")
        self.bos_id, self.eos_id, self.device = config["bos_token_id"], config["eos_token_id"], device
        self.ids = torch.from_numpy(np.concatenate([c[0] for c in chunks])).to(device)
        self.starts = torch.from_numpy(starts[order]).to(device)
        self.prompts = torch.from_numpy(prompts[order]).to(device)
        self.totals = torch.from_numpy(totals[order]).to(device)

    def batch(self, length, count):
        """(rows of ids filled up with <|endoftext|>, lengths of the prompts, lengths with the responses)"""
        last = torch.randint(self.fitting[length], (count, 1), device=self.device)
        earlier = self.earlier_turns(last, length)
        turns = torch.cat([earlier, last], 1)
        ids, totals = self.joined(turns.clamp(min=0), self.totals[turns] * (turns >= 0), length)
        return ids, totals - (self.totals[last] - self.prompts[last])[:, 0], totals

    def earlier_turns(self, last, length):
        """Numbers of the examples that come before the last one of each row, oldest first; -1 is none.

        The newest ones that leave room for the answer, as `tokenskip chat` forgets the oldest ones.
        """
        shape = (len(last), EARLIER_TURNS)
        # The shorter of two: half of the turns are lists and facts then, and more turns fit.
        drawn = torch.minimum(*(torch.randint(len(self.totals), shape, device=self.device) for _ in range(2)))
        prompts = self.prompts[last]
        room = torch.maximum(torch.randint(ROOM[0], ROOM[1] + 1, prompts.shape, device=self.device),
                             self.totals[last] - prompts)
        chosen = torch.rand(prompts.shape, device=self.device) < LENGTHS[length][1]
        fits = self.totals[drawn].cumsum(1) <= length - 1 - prompts - room
        return drawn.masked_fill(~(chosen & fits), -1).flip(1)

    def joined(self, turns, lengths, length):
        """(what begins a conversation and the first `lengths` ids of each of a row's turns, how many ids that are)"""
        count, last = len(turns), turns.shape[1] - 1
        ends = family.before_turns + lengths.cumsum(1)
        column = torch.arange(length, device=self.device).repeat(count, 1)
        turn = torch.searchsorted(ends, column, right=True).clamp(max=last)
        source = (self.starts[turns] - (ends - lengths)).gather(1, turn) + column
        ids = self.ids[source.clamp(0, len(self.ids) - 1)].long()
        if family.bos:
            ids[:, 0] = self.bos_id
        return ids.masked_fill(column >= ends[:, -1:], self.eos_id), ends[:, -1]


# ---------------------------------------------------------------------------------------------------------------
# Model: a dictionary of weights under the family's tensor names, and plain functions
# ---------------------------------------------------------------------------------------------------------------

def block_weights(weights, layer):
    """[norm, q, k, v, attention's output, norm, gate, up, down, and where there are such the norms of q and k]"""
    return [weights[family.layer.format(layer, name)] for name in family.block_tensors]


def new_weights(config, generator):
    s = family.sizes(config)
    d, q, kv, mlp, head = s["d"], s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"], s["mlp"], s["head_dim"]
    shapes = [(d,), (q, d), (kv, d), (kv, d), (d, q), (d,), (mlp, d), (mlp, d), (d, mlp), (head,), (head,)]
    weights = {family.tensors["wte"]: torch.randn(s["rows"], d, generator=generator) * 0.02}
    for layer in range(s["layers"]):
        for i, (name, shape) in enumerate(zip(family.block_tensors, shapes)):
            std = 0.02 / math.sqrt(2 * s["layers"]) if i in (4, 8) else 0.02  # what is added to the residual stream
            fresh = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * std
            weights[family.layer.format(layer, name)] = fresh
    weights[family.tensors["ln_f"]] = torch.ones(d)
    return weights


def rms_norm(x, weight, eps):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return y.to(x.dtype) * weight.to(x.dtype)


def rope_tables(positions, head_dim, theta):
    """cos and sin with a last dimension of head_dim / 2, in float32."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions[..., None].float() * inverse
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Half-split RoPE of [batch, heads, tokens, head_dim]: the pairs are (i, i + head_dim / 2)."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def linear(x, *weights):
    """One matrix product for weights that share their input."""
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return F.linear(x, weight.to(x.dtype))


def split_heads(x, heads):
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def attention_input(x, block, cos, sin, heads, eps):
    """q, k and v by heads, as many of each: where query heads share a key head, that is repeated."""
    widths = [w.shape[0] for w in block[1:4]]
    q, k, v = linear(rms_norm(x, block[0], eps), *block[1:4]).split(widths, -1)
    shared = widths[0] // widths[1]
    q, k, v = split_heads(q, heads), split_heads(k, heads // shared), split_heads(v, heads // shared)
    if len(block) > 9:
        q, k = rms_norm(q, block[9], eps), rms_norm(k, block[10], eps)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)


def block_output(x, mixed, block, eps):
    x = x + linear(mixed.transpose(1, 2).flatten(2), block[4])
    gate, up = linear(rms_norm(x, block[5], eps), *block[6:8]).chunk(2, -1)
    return x + linear(F.silu(gate) * up, block[8])


def transformer_block(x, cos, sin, heads, eps, visible, *block):
    """visible: None, or which columns each row attends to, as scaled_dot_product_attention takes it."""
    q, k, v = attention_input(x, block, cos, sin, heads, eps)
    return block_output(x, F.scaled_dot_product_attention(q, k, v, attn_mask=visible), block, eps)


def weighted_loss(x, ln_f, wte, eps, targets, loss_weights):
    """Cross-entropy against the tied head, each token times its weight, summed."""
    logits = linear(rms_norm(x, ln_f, eps), wte).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * loss_weights.flatten()).sum()


# Compiled per block, not as one graph: twelve times less to compile for every sequence length.
compiled = {"block": transformer_block, "loss": weighted_loss}


def compile_functions():
    import torch._dynamo
    torch._dynamo.config.recompile_limit = 16
    compiled["block"] = torch.compile(transformer_block, dynamic=False)
    compiled["loss"] = torch.compile(weighted_loss, dynamic=False)


def twofold_visibility(length, block, device):
    """[2 * length, 2 * length] for noisy tokens and behind them the clean ones: a noisy block sees itself and the clean
    blocks before it, a clean one itself and those before it (block diffusion's training mask; Arriola et al. 2025)."""
    number = torch.arange(length, device=device) // block
    own, earlier = number[:, None] == number, number[:, None] > number
    return torch.cat([torch.cat([own, earlier], 1), torch.cat([torch.zeros_like(own), own | earlier], 1)])


def training_loss(weights, config, inputs, targets, loss_weights, dtype):
    eps, sizes = config["rms_norm_eps"], family.sizes(config)
    length = inputs.shape[1]
    positions, visible = torch.arange(length, device=inputs.device), None
    if family is SDAR:
        visible = twofold_visibility(length, config["block_size"], inputs.device)
        inputs, positions = torch.cat([inputs, targets], 1), positions.repeat(2)
    cos, sin = rope_tables(positions, sizes["head_dim"], config["rope_theta"])
    wte = weights[family.tensors["wte"]]
    x = F.embedding(inputs, wte).to(dtype)
    for layer in range(sizes["layers"]):
        x = compiled["block"](x, cos, sin, sizes["heads"], eps, visible, *block_weights(weights, layer))
    return compiled["loss"](x[:, :length], weights[family.tensors["ln_f"]], wte, eps, targets, loss_weights)


# ---------------------------------------------------------------------------------------------------------------
# Masking: LLaDA's objective, and for a part of the batch the pattern that block-wise decoding meets
# ---------------------------------------------------------------------------------------------------------------

SMALLEST_T = 0.02  # keeps 1/t, the weight of a masked token, from exploding
BLOCKWISE_SHARE = 0.5


def corrupt(ids, prompts, totals, block_length, mask_id):
    """(ids with masks, weight of each token in the loss).

    t is uniform, spread evenly over the batch, and every token of the response and of the padding after it is masked
    with probability t and weighs 1/t when it is; the prompt is never masked. In a block-wise row that holds for one
    block alone: those before it are clean, those after it all masks without a weight, as when it is decoded.
    """
    count, length = ids.shape
    device = ids.device
    offset = torch.arange(length, device=device) - prompts[:, None]
    response = offset >= 0
    t = (torch.arange(count, device=device)[:, None] + torch.rand(1, device=device)) / count
    t = SMALLEST_T + (1 - SMALLEST_T) * t
    block = torch.div(offset, block_length, rounding_mode="floor")
    # One of the blocks that hold text, or the first one of padding alone.
    blocks = torch.minimum((totals - prompts - 1) // block_length + 2, (length - prompts - 1) // block_length + 1)
    chosen = (torch.rand(count, device=device) * blocks).long()[:, None]
    blockwise = torch.rand(count, 1, device=device) < BLOCKWISE_SHARE
    eligible = response & (~blockwise | (block == chosen))
    masked = eligible & (torch.rand(count, length, device=device) < t)
    loss_weights = masked / (t * eligible.sum(1, keepdim=True) * count)
    hidden = masked | (response & blockwise & (block > chosen))
    return ids.masked_fill(hidden, mask_id), loss_weights


def corrupt_blocks(ids, prompts, totals, block_length, mask_id):
    """The same for attention by blocks, counted from position 0: every block has a t of its own, and the tokens of the
    response in it, and of the padding up to the end of the block in which the text ends, are masked with it."""
    count, length = ids.shape
    device = ids.device
    position = torch.arange(length, device=device)
    end = (totals + block_length - 1) // block_length * block_length
    eligible = (position >= prompts[:, None]) & (position < end[:, None])
    block = position // block_length
    t = SMALLEST_T + (1 - SMALLEST_T) * torch.rand(count, int(block.max()) + 1, device=device)[:, block]
    masked = eligible & (torch.rand(count, length, device=device) < t)
    loss_weights = masked / (t * eligible.sum(1, keepdim=True) * count)
    return ids.masked_fill(masked, mask_id), loss_weights


# ---------------------------------------------------------------------------------------------------------------
# Optimiser: Muon for the matrices of the blocks, AdamW for the embedding and the norms
# ---------------------------------------------------------------------------------------------------------------


def orthogonalize(g):
    """Newton-Schulz iteration on a stack of matrices: pushes all their singular values towards 1."""
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon:
    """Momentum whose step is made orthogonal. Matrices of one shape are stepped together, as one stack."""

    def __init__(self, matrices, momentum=0.95, weight_decay=0.02):
        self.momentum, self.weight_decay = momentum, weight_decay
        shapes = {}
        for matrix in matrices:
            shapes.setdefault(tuple(matrix.shape), []).append(matrix)
        self.groups = [(group, torch.zeros_like(torch.stack([m.detach() for m in group])))
                       for group in shapes.values()]

    @torch.no_grad()
    def step(self, rate):
        for group, average in self.groups:
            gradient = torch.stack([m.grad for m in group])
            average.lerp_(gradient, 1 - self.momentum)
            step = orthogonalize(gradient.lerp_(average, self.momentum)).float()
            step *= -rate * max(1.0, step.shape[1] / step.shape[2]) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.weight_decay)
            torch._foreach_add_(group, list(step.unbind()))


MUON_RATE, ADAM_RATE = 0.02, 2e-3


def rate_at(progress):
    """Of the highest learning rate: a short rise, a plateau, a straight way down to nothing."""
    return min(1.0, progress / 0.02, max(0.0, (1 - progress) / 0.65))


# ---------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------


def start_workers(tokenizer, options):
    """Begin to make the examples in all cores; the pool is read later."""
    processes = min(16, os.cpu_count() or 1)
    workers = multiprocessing.get_context("fork").Pool(processes)
    chunk = min(CHUNK, options.examples)
    jobs = [(tokenizer.to_str(), options.seed * 1000003 + i, chunk) for i in range(options.examples // chunk)]
    return workers, workers.starmap_async(tokenized_chunk, jobs, chunksize=1)


def warm_up(weights, config, options, device, dtype):
    """Compile for every length while the workers are busy."""
    for length in LENGTHS:
        ids = torch.zeros(options.batch_tokens // length, length, dtype=torch.long, device=device)
        training_loss(weights, config, ids, ids, ids.float(), dtype).backward()
    for weight in weights.values():
        weight.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize()


def train(weights, config, tokenizer, options, device):
    """Train in place until the time is over; returns the average of the weights over the last steps."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    workers, chunks = start_workers(tokenizer, options)  # before CUDA starts: a forked child may not use it
    weights = {name: w.to(device).requires_grad_() for name, w in weights.items()}
    if device.type == "cuda" and not options.no_compile:
        compile_functions()
    warm_up(weights, config, options, device, dtype)
    say(f"compiled for the lengths {', '.join(map(str, LENGTHS))}")
    pool = Pool(chunks.get(), dict(config, bos_token_id=tokenizer.token_to_id(family.bos) if family.bos else None),
                device)
    workers.terminate()
    say(f"{len(pool.totals)} examples; fitting by length: {pool.fitting}; "
        f"tokens in all: {len(pool.ids)}")

    matrices = [w for name, w in weights.items() if w.dim() == 2 and name != family.tensors["wte"]]
    others = [w for name, w in weights.items() if w.dim() == 1 or name == family.tensors["wte"]]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0,
                             fused=device.type == "cuda")
    average = [w.detach().clone() for w in weights.values()]
    begin, end = time.time(), START + options.minutes * 60
    if end <= begin:
        raise SystemExit("train_demo_model.py: --minutes is over before the first step; give it more")
    rng, step, tokens, losses = random.Random(options.seed), 0, 0, []
    reported = begin
    while time.time() < end:
        progress = (time.time() - begin) / (end - begin)
        rate = options.rate * rate_at(progress)
        length = rng.choices(list(LENGTHS), [often for often, _ in LENGTHS.values()])[0]
        ids, prompts, totals = pool.batch(length, options.batch_tokens // length)
        if family is SDAR:
            inputs, loss_weights = corrupt_blocks(ids, prompts, totals, config["block_size"], config["mask_token_id"])
        else:
            block_length = rng.choice([16, 32, 32, 32, 64])
            inputs, loss_weights = corrupt(ids, prompts, totals, block_length, config["mask_token_id"])
        loss = training_loss(weights, config, inputs, ids, loss_weights, dtype)
        loss.backward()
        muon.step(MUON_RATE * rate)
        adam.param_groups[0]["lr"] = ADAM_RATE * rate
        adam.step()
        for weight in weights.values():
            weight.grad = None
        with torch.no_grad():
            # The average starts short, so that it soon forgets the beginning.
            torch._foreach_lerp_(average, [w.detach() for w in weights.values()], 1 - min(0.998, step / (step + 10)))
        losses.append(loss.detach())
        step, tokens = step + 1, tokens + ids.numel()
        if time.time() - reported > 15:
            reported = time.time()
            mean = torch.stack(losses).mean().item()
            say(f"step {step}  {100 * progress:.0f} %  loss {mean:.4f}  {tokens / (time.time() - begin) / 1e6:.2f} "
                "million tokens/s")
            losses = []
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.time() - begin
    say(f"trained {step} steps, {tokens / 1e6:.0f} million tokens, {seconds:.0f} s, {1000 * seconds / step:.1f} ms a "
        f"step, {tokens / seconds / 1e6:.2f} million tokens/s")
    return dict(zip(weights, average))


# ---------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------


SDAR_BLOCK = 8


def sdar_config(tokenizer, toy):
    d_model, layers, heads, kv_heads, head_dim, mlp = (64, 2, 4, 2, 24, 96) if toy else (256, 8, 8, 2, 32, 384)
    eos = tokenizer.token_to_id(family.eos)
    return {
        "architectures": ["SDARForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "block_size": SDAR_BLOCK, "eos_token_id": eos, "head_dim": head_dim, "hidden_act": "silu",
        "hidden_size": d_model, "initializer_range": 0.02, "intermediate_size": mlp,
        "mask_token_id": tokenizer.token_to_id(family.mask), "max_position_embeddings": 512, "model_type": "sdar",
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv_heads,
        "pad_token_id": eos, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": VOCABULARY,
    }


def model_config(tokenizer, toy):
    if family is SDAR:
        return sdar_config(tokenizer, toy)
    d_model, layers, heads, mlp = (64, 2, 4, 96) if toy else (256, 12, 8, 352)
    eos = tokenizer.token_to_id(family.eos)
    return {
        "activation_type": "silu", "alibi": False, "architectures": ["LLaDAModelLM"], "attention_dropout": 0.0,
        "attention_layer_norm": False, "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama",
        "d_model": d_model, "embedding_dropout": 0.0, "embedding_size": VOCABULARY, "eos_token_id": eos,
        "include_bias": False, "include_qkv_bias": False, "init_std": 0.02, "input_emb_norm": False,
        "layer_norm_type": "rms", "layer_norm_with_affine": True, "mask_token_id": tokenizer.token_to_id(family.mask),
        "max_sequence_length": 512, "mlp_hidden_size": mlp, "mlp_ratio": 4, "model_type": "llada", "n_heads": heads,
        "n_kv_heads": heads, "n_layers": layers, "pad_token_id": eos, "precision": "amp_bf16",
        "residual_dropout": 0.0, "rms_norm_eps": 1e-05, "rope": True, "rope_full_precision": True,
        "rope_theta": 10000.0, "scale_logits": False, "use_cache": False,
        "vocab_size": tokenizer.get_vocab_size(), "weight_tying": True,
    }


def tokenizer_config(tokenizer):
    added = {str(tokenizer.token_to_id(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                             "single_word": False, "special": True} for t in family.added_tokens}
    config = {"add_bos_token": False, "add_eos_token": False, "added_tokens_decoder": added, "bos_token": family.bos,
              "chat_template": family.template, "clean_up_tokenization_spaces": False, "eos_token": family.eos,
              "fast_tokenizer": True, "model_max_length": 512, "pad_token": family.eos,
              "tokenizer_class": "PreTrainedTokenizerFast"}
    return dict(config, cls_token="[CLS]", gmask_token="[gMASK]") if family is LLaDA else config


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
        json.dump(value, out, indent=2, ensure_ascii=False)
        out.write("\n")


def save_model(folder, weights, config, tokenizer):
    from safetensors.torch import save_file
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    placed = {}
    for name in sorted(weights):  # by a hash, so that a layer's tensors are scattered as they are in LLaDA-8B
        placed[name] = shards[hashlib.sha256(name.encode()).digest()[0] & 1]
    stored = {name: w.detach().to("cpu", torch.bfloat16).contiguous() for name, w in weights.items()}
    for shard in shards:
        path = os.path.join(folder, shard)
        save_file({n: w for n, w in stored.items() if placed[n] == shard}, path, metadata={"format": "pt"})
        os.chmod(path, 0o644)  # safetensors leaves it to its owner alone
    write_json(folder, "model.safetensors.index.json", {
        "metadata": {"total_size": sum(w.numel() * 2 for w in stored.values())}, "weight_map": placed})
    write_json(folder, "config.json", config)
    ends = config["eos_token_id"]
    write_json(folder, "generation_config.json", {
        "_from_model_config": True, "bos_token_id": tokenizer.token_to_id(family.bos), "eos_token_id": ends}
        if family.bos else {"eos_token_id": [tokenizer.token_to_id(family.eot), ends]})
    write_json(folder, "tokenizer_config.json", tokenizer_config(tokenizer))
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "eval.jsonl"), "w", encoding="utf-8") as out:
        for row in evaluation_set():
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def load_model(folder):
    """(weights in float32, config, tokenizer) of a folder that this script wrote."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as file:
            shards = sorted(set(json.load(file)["weight_map"].values()))
        weights = {}
        for shard in shards:
            weights.update(load_file(os.path.join(folder, shard)))
        tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    except Exception as error:  # every library has its own kind; to the user all mean the same
        raise SystemExit(f"train_demo_model.py: {folder}: cannot be read as a model folder: {error}")
    return {name: w.float() for name, w in weights.items()}, config, tokenizer


# ---------------------------------------------------------------------------------------------------------------
# Decoding and evaluation: the same rules as in tokenskip.h, for a whole batch at once
# ---------------------------------------------------------------------------------------------------------------


def hidden_states(weights, config, ids, positions, visible, cache=None):
    """Run the rows of ids at their positions. Without a cache: over everything, and what comes back is (states, new
    cache). With one: the rows' keys and values replace those in the cache."""
    eps, sizes = config["rms_norm_eps"], family.sizes(config)
    heads = sizes["heads"]
    cos, sin = rope_tables(positions, sizes["head_dim"], config["rope_theta"])
    cos, sin = cos[:, None], sin[:, None]
    x = F.embedding(ids, weights[family.tensors["wte"]])
    kept = []
    for layer in range(sizes["layers"]):
        block = block_weights(weights, layer)
        q, k, v = attention_input(x, block, cos, sin, heads, eps)
        if cache is not None:
            rows = positions[:, None, :, None].expand_as(k)
            k = cache[layer][0].scatter_(2, rows, k)
            v = cache[layer][1].scatter_(2, rows, v)
        kept.append((k, v))
        x = block_output(x, F.scaled_dot_product_attention(q, k, v, attn_mask=visible), block, eps)
    return rms_norm(x, weights[family.tensors["ln_f"]], eps), kept


@torch.no_grad()
def decode_blocks(weights, config, prompts, gen_length=128, block_length=None, threshold=0.9):
    """The same by blocks, counted from position 0; every pass is one over all that the block sees. The passes are those
    of a generation that keeps K and V: the prompt's whole blocks once, a block's steps, a pass that stores the block
    unless it is the last."""
    block, device = block_length or config["block_size"], weights[family.tensors["wte"]].device
    mask_id, ends = config["mask_token_id"], [config["eos_token_id"], config["eot_token_id"]]
    starts = torch.tensor([len(p) for p in prompts], device=device)
    lengths = (starts + gen_length + block - 1) // block * block
    ids = torch.full((len(prompts), int(lengths.max())), mask_id, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, :len(prompt)] = torch.tensor(prompt, device=device)
    passes = (starts >= block).long()
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    generated = torch.arange(ids.shape[1], device=device) - starts[:, None]
    for number in range(int(starts.min()) // block, ids.shape[1] // block):
        first, end = number * block, (number + 1) * block
        positions = torch.arange(end, device=device)
        visible = (positions[:, None] // block >= positions // block)[None, None]
        own = (starts < end) & (end <= lengths) & ~ended
        while True:
            masked = (ids[:, first:end] == mask_id) & own[:, None]
            if not masked.any():
                break
            passes += masked.any(1)
            states, _ = hidden_states(weights, config, ids[:, :end], positions.expand(len(prompts), end), visible)
            logits = F.linear(states[:, first:], weights[family.tensors["wte"]])
            confidence = logits.softmax(-1)
            confidence[..., mask_id] = -1
            confidence, best = confidence.max(-1)
            confidence = confidence.masked_fill(~masked, -1)
            surest = F.one_hot(confidence.argmax(1), block).bool()
            commit = masked & (surest | (confidence >= threshold))
            ids[:, first:end] = torch.where(commit, best, ids[:, first:end])
        is_end = sum(ids[:, first:end] == e for e in ends) > 0
        inside = (generated[:, first:end] >= 0) & (generated[:, first:end] < gen_length)
        ended |= own & (is_end & inside).any(1)
        passes += own & ~ended & (end < lengths)
    ids = ids.masked_fill((ids == mask_id) & ended[:, None], config["eos_token_id"])
    return ids.gather(1, starts[:, None] + torch.arange(gen_length, device=device)).tolist(), passes.tolist()


@torch.no_grad()
def decode(weights, config, prompts, gen_length=128, block_length=32, threshold=0.9, dual=False):
    """Generate for lists of prompt ids: (lists of generated ids, forward passes of each)."""
    if family is SDAR:
        return decode_blocks(weights, config, prompts, gen_length, None, threshold)
    device = weights[family.tensors["wte"]].device
    mask_id, eos_id = config["mask_token_id"], config["eos_token_id"]
    starts = torch.tensor([len(p) for p in prompts], device=device)
    longest = int(starts.max()) + gen_length
    everywhere = torch.arange(longest, device=device).expand(len(prompts), longest)
    ids = torch.full((len(prompts), longest), eos_id, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, :len(prompt)] = torch.tensor(prompt, device=device)
        ids[row, len(prompt):len(prompt) + gen_length] = mask_id
    visible = (everywhere < starts[:, None] + gen_length)[:, None, None]  # a short row's rest is not there
    passes = torch.zeros(len(prompts), dtype=torch.long, device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for first in range(0, gen_length, block_length):
        where = starts[:, None] + first + torch.arange(block_length, device=device)
        cache = None
        while True:
            tokens = ids.gather(1, where)
            masked = (tokens == mask_id) & ~ended[:, None]
            if not masked.any():
                break
            passes += masked.any(1)
            if dual and cache is not None:
                states, cache = hidden_states(weights, config, tokens, where, visible, cache)
            else:
                states, cache = hidden_states(weights, config, ids, everywhere, visible)
                states = states.gather(1, where[..., None].expand(-1, -1, states.shape[-1]))
            logits = F.linear(states, weights[family.tensors["wte"]])
            logits[..., mask_id] = -math.inf
            confidence, best = logits.softmax(-1).max(-1)
            confidence = confidence.masked_fill(~masked, -1)
            surest = F.one_hot(confidence.argmax(1), block_length).bool()
            commit = masked & (surest | (confidence >= threshold))
            ids.scatter_(1, where, torch.where(commit, best, tokens))
        tokens = ids.gather(1, where)
        ended |= ((tokens == eos_id) | (tokens == config["eot_token_id"])).any(1)
    generated = ids.gather(1, starts[:, None] + torch.arange(gen_length, device=device))
    return generated.tolist(), passes.tolist()


def is_right(text, answer):
    """It ends with the answer, and what stands before is nothing, a space or punctuation that no number has."""
    text = text.strip()
    if not text.endswith(answer):
        return False
    before = text[:-len(answer)][-1:]
    return before in ("", " ") or (before in string.punctuation and before not in "-.")


def answers(weights, config, tokenizer, prompts, device, **how):
    """(texts, forward passes of each) for prompts as text."""
    weights = {name: w.to(device, torch.bfloat16).float() for name, w in weights.items()}  # as they are stored
    config = dict(config, eot_token_id=tokenizer.token_to_id(family.eot))
    prompts = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    ends, texts, passes = {config["eos_token_id"], config["eot_token_id"]}, [], []
    for i in range(0, len(prompts), 240):
        generated, some_passes = decode(weights, config, prompts[i:i + 240], **how)
        passes += some_passes
        for ids in generated:
            end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            texts.append(tokenizer.decode(ids[:end]))
    return texts, passes


def evaluate(weights, config, tokenizer, rows, device, **how):
    texts, passes = answers(weights, config, tokenizer, [chat(row["prompt"]) for row in rows], device, **how)
    right, wrong = {}, []
    for row, text in zip(rows, texts):
        good = is_right(text, row["answer"])
        right.setdefault(row["kind"], []).append(good)
        if not good:
            wrong.append((row, text))
    total = sum(map(sum, right.values()))
    kinds = "  ".join(f"{kind} {100 * sum(r) / len(r):.1f} % of {len(r)}" for kind, r in right.items())
    label = ", ".join(f"{name} {value}" for name, value in {"dual": False, "gen_length": 128, **how}.items())
    say(f"{label}: {100 * total / len(rows):.1f} % of {len(rows)}; {kinds}; mean nfe {sum(passes) / len(passes):.1f}")
    return wrong


CHATS, CHAT_TURNS = 100, 6


def within_context(tokenizer, turns, room):
    """The turns without the oldest exchanges that `tokenskip chat` would forget so that an answer fits."""
    while len(turns) > 1 and len(tokenizer.encode(chat(*turns), add_special_tokens=False).ids) > room:
        turns = turns[2:]
    return turns


def evaluate_chats(weights, config, tokenizer, device, gen_length=128):
    """Conversations as `tokenskip chat` has them: held-out questions of all kinds, after the model's own answers."""
    rng, rows = random.Random(20240607), evaluation_set()
    chats = [rng.sample(rows, CHAT_TURNS) for _ in range(CHATS)]
    turns, right = [[] for _ in chats], []
    for turn in range(CHAT_TURNS):
        turns = [within_context(tokenizer, before + [questions[turn]["prompt"]],
                                LONGEST - gen_length)
                 for before, questions in zip(turns, chats)]
        texts, _ = answers(weights, config, tokenizer, [chat(*some) for some in turns], device, dual=True,
                           gen_length=gen_length)
        right.append(sum(is_right(text, questions[turn]["answer"]) for text, questions in zip(texts, chats)))
        turns = [before + [text] for before, text in zip(turns, texts)]
    forgotten = sum(len(some) < 2 * CHAT_TURNS for some in turns)
    say(f"chats, dual True, gen_length {gen_length}: right at turns 1 to {CHAT_TURNS}: {', '.join(map(str, right))} of "
        f"{CHATS}; {forgotten} outgrew the context")


def evaluate_all(weights, config, tokenizer, device):
    rows = evaluation_set()
    wrong = evaluate(weights, config, tokenizer, rows, device)
    for row, text in wrong[:12]:
        say(f"  wrong: {row['prompt']!r} expected {row['answer']!r} got {text!r}")
    if family is LLaDA:
        evaluate(weights, config, tokenizer, rows, device, dual=True)
    evaluate_chats(weights, config, tokenizer, device)
    for gen_length in (96, 64, 32):  # answers that need more room than that are expected to fail
        evaluate(weights, config, tokenizer, [r for r in rows if r["kind"] != "arithmetic"], device,
                 gen_length=gen_length)
    ids = tokenizer.encode(chat(DEMO_QUESTION), add_special_tokens=False).ids
    answer = decode({n: w.to(device).float() for n, w in weights.items()},
                    dict(config, eot_token_id=tokenizer.token_to_id(family.eot)), [ids])[0][0]
    say(f"{DEMO_QUESTION} {tokenizer.decode(answer)}")


# ---------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------


def say(text):
    print(f"[{time.time() - START:5.0f} s] {text}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description="Train the demo model of TokenSkip.")
    parser.add_argument("--out", required=True, metavar="DIR", help="the model folder to write")
    parser.add_argument("--minutes", type=float, default=7.0, metavar="M",
                        help="stop training so long after the start, compiling included (default 7)")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="llada",
                        help="LLaDA's architecture (default), or SDAR's, with attention by blocks of 8")
    parser.add_argument("--resume", metavar="DIR", help="begin with the weights and tokenizer of this model folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-only", action="store_true", help="only measure the model in --out")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates (default 1)")
    parser.add_argument("--examples", type=int, default=3000000, help="examples to make (default 3000000)")
    parser.add_argument("--batch-tokens", type=int, default=92160, help="tokens in a batch (default 92160)")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    parser.add_argument("--toy", action="store_true", help="a tiny model and few examples, to try the script")
    options = parser.parse_args()
    if not options.minutes > 0 or math.isinf(options.minutes):
        parser.error("--minutes must be a positive number")
    if not 0 < options.rate <= 10:
        parser.error("--rate must be above 0 and at most 10")
    if options.examples < 1000:
        parser.error("--examples must be at least 1000")
    if options.batch_tokens < LONGEST:
        parser.error(f"--batch-tokens must be at least {LONGEST}")
    if options.eval_only and options.resume:
        parser.error("--eval-only measures the model in --out; it takes no --resume")
    if options.toy:
        options.examples, options.batch_tokens = min(options.examples, 4000), min(options.batch_tokens, 4608)
    return options


def main():
    global family
    options = arguments()
    family = FAMILIES[options.family]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.eval_only:
        evaluate_all(*load_model(options.out), device)
        return
    os.makedirs(options.out, exist_ok=True)
    torch.manual_seed(options.seed)
    if options.resume:
        weights, config, tokenizer = load_model(options.resume)
    else:
        tokenizer = train_tokenizer(options.seed)
        config = model_config(tokenizer, options.toy)
        weights = new_weights(config, torch.Generator().manual_seed(options.seed))
    say(f"{sum(w.numel() for w in weights.values())} parameters, vocabulary of {config['vocab_size']}, on {device}")
    weights = train(weights, config, tokenizer, options, device)
    save_model(options.out, weights, config, tokenizer)
    say(f"wrote {options.out}")
    evaluate_all(weights, config, tokenizer, device)


if __name__ == "__main__":
    main()
