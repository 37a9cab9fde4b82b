// Small tokenizers of our own that use every part of the format. Deterministic: the committed ones come from here too.
import { random } from './generate.mjs';

const corpus = `Who is Newton in physics? Newton was an English physicist who described gravity and motion.
The quick brown fox jumps over the lazy dog. It's 1234 o'clock; they're late, we've 56 apples, I'll go, he'd stay, \
I'm here.
Das schöne Mädchen fährt über die Straße. L'élève est allé à l'école naïve. El niño corrió mañana.
Быстрая коричневая лиса прыгает через ленивую собаку. Η γρήγορη αλεπού πηδάει. 天地玄黃宇宙洪荒日月盈昃 こんにちは世界 안녕하세요 세계
नमस्ते दुनिया สวัสดีชาวโลก مرحبا بالعالم שלום עולם for (int i = 0; i < n; i++) { return x == y ? a[i] : b; }
THE HTTP SERVER RETURNS 404 NOT FOUND        and    spaces
\t\ttabs\r\n\r\nnewlines\n\n\n😀👍🏽 !!! ??? ... --- === ### 3.14159 1,000,000 aaaaaaaa aaaaaaaaaaaaaaaa \
the the the and and of of to to in in`;

const alphabet = (() => {
  const chars = [];
  let next = 256;
  for (let b = 0; b < 256; b++) {
    const prints = (b > 0x20 && b < 0x7f) || (b > 0xa0 && b !== 0xad);
    chars.push(String.fromCodePoint(prints ? b : next++));
  }
  return chars;
})();
const toAlphabet = (text) => Array.from(Buffer.from(text, 'utf8'), (b) => alphabet[b]).join('');

function train(n) {
  const pieces = corpus.match(/'(?:[sdmt]|ll|ve|re)| ?\p{L}[\p{L}\p{M}]*| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+/gu);
  const words = pieces.map((p) => Array.from(toAlphabet(p)));
  const merges = [];
  while (merges.length < n) {
    const counts = new Map();
    for (const w of words) for (let i = 0; i + 1 < w.length; i++) {
      const key = `${w[i]} ${w[i + 1]}`;
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    let best = null;
    for (const [key, c] of counts)
      if (!best || c > counts.get(best) || (c === counts.get(best) && key < best)) best = key;
    if (!best) break;
    merges.push(best);
    const [a, b] = best.split(' ');
    for (const w of words) for (let i = 0; i + 1 < w.length; i++)
      if (w[i] === a && w[i + 1] === b) w.splice(i, 2, a + b);
  }
  return merges;
}

const allMerges = train(420);
function base(n = 400, bytes = alphabet) {
  const vocab = {};
  let id = 0;
  for (const c of bytes) vocab[c] = id++;
  const merges = [];
  for (const m of allMerges.slice(0, n)) {
    const [a, b] = m.split(' ');
    if (!(a in vocab) || !(b in vocab)) continue;
    if (!(a + b in vocab)) vocab[a + b] = id++;
    merges.push(m);
  }
  return { vocab, merges };
}

export const patterns = {
  llada: "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}|" +
    ' ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+',
  qwen: "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" +
    ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
  llama3: "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" +
    ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
  gpt2: "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  gpt4o: '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+' +
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" +
    '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*' +
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" +
    '\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
};

const split = (regex, removed) =>
  ({ type: 'Split', pattern: { Regex: regex }, behavior: removed ? 'Removed' : 'Isolated', invert: !!removed });
const byteLevel = (use_regex = false) =>
  ({ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex });
const sequence = (...pretokenizers) => ({ type: 'Sequence', pretokenizers });
const added = (id, content, options = {}) =>
  ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true, ...options });
const list = (vocab, contents) => {
  let id = Object.keys(vocab).length;
  return contents.map((c) => {
    const [content, options] = Array.isArray(c) ? c : [c, {}];
    return added(content in vocab ? vocab[content] : id++, content, options);
  });
};
const file = (model, parts) => ({
  version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null, pre_tokenizer: null,
  post_processor: null, decoder: byteLevel(true), ...parts,
  model: { type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null,
    fuse_unk: false, byte_fallback: false, ignore_merges: false, ...model },
});
const pairs = (merges) => merges.map((m) => m.split(' '));

export function* madeTokenizers() {
  {
    const { vocab, merges } = base();
    yield ['llada', file({ vocab, merges }, {
      normalizer: { type: 'NFC' }, pre_tokenizer: sequence(split(patterns.llada), byteLevel()),
      added_tokens: list(vocab, ['<|startoftext|>', '<|endoftext|>', '[CLS]', '[gMASK]', '<|reserved_token_0|>',
        '<|reserved_token_1|>', '<role>', '</role>', '<|arithmetic_start|>', '<|mdm_mask|>', '<|start_header_id|>',
        '<|end_header_id|>', '<|eot_id|>']),
      post_processor: { type: 'TemplateProcessing', single: [{ Sequence: { id: 'A', type_id: 0 } }],
        pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }], special_tokens: {} } })];
  }
  {
    const { vocab, merges } = base();
    vocab['<|endoftext|>'] = Object.keys(vocab).length;
    const model = { vocab, merges, unk_token: '<|endoftext|>', continuing_subword_prefix: '', end_of_word_suffix: '' };
    yield ['gpt2', file(model, {
      pre_tokenizer: byteLevel(true), added_tokens: list(vocab, ['<|endoftext|>']), post_processor: byteLevel(true) })];
  }
  {
    const { vocab, merges } = base();
    for (const w of [' unreachable', 'xyzzy', 'ſtraße', '   ', '\n\n', ' gravitys'])
      vocab[toAlphabet(w)] ??= Object.keys(vocab).length;
    yield ['llama3', file({ vocab, merges: pairs(merges), ignore_merges: true }, {
      pre_tokenizer: sequence(split(patterns.llama3), byteLevel()),
      added_tokens: list(vocab, ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
        '<|eot_id|>']),
      post_processor: { type: 'Sequence', processors: [byteLevel(true), { type: 'TemplateProcessing',
        single: [{ SpecialToken: { id: '<|begin_of_text|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
        pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
        special_tokens: {
          '<|begin_of_text|>': { id: '<|begin_of_text|>', ids: [0], tokens: ['<|begin_of_text|>'] } } }] } })];
  }
  {
    const { vocab, merges } = base();
    const spread = Object.fromEntries(Object.entries(vocab).map(([t, i]) => [t, i * 3 + (i > 300 ? 1000 : 0)]));
    const last = Math.max(...Object.values(spread));
    spread['<|endofprompt|>'] = last + 19;
    spread['<|endoftext|>'] = 1;
    yield ['gpt4o', file({ vocab: spread, merges }, {
      pre_tokenizer: sequence(split(patterns.gpt4o, true), byteLevel()),
      added_tokens: list(spread, ['<|endoftext|>', '<|endofprompt|>']) })];
  }
  {
    const { vocab, merges } = base();
    const flags = [];
    for (const name of ['lstrip', 'rstrip', 'single_word', 'normalized']) flags.push([`<${name}>`, { [name]: true }]);
    const more = [...flags,
      ['<both>', { lstrip: true, rstrip: true }],
      ['<all>', { lstrip: true, rstrip: true, single_word: true, normalized: true }],
      ['word', { single_word: true, special: false, normalized: true }],
      ['naïve', { special: false, normalized: true }],
      ['cafe\u0301', { special: false, normalized: true }], ['e\u0301', { special: true, normalized: true }],
      ['\u1112\u1161\u11ab', { normalized: true, special: false }],
      ['<a>', {}], ['<a><b>', {}], ['<b><c>', {}], ['<a', {}],
      ['>>=', { special: false, normalized: true }], ['é', { special: true }],
      ['\n\n', { special: false }], ['\t', {}], ['  ', { special: false, rstrip: true }],
      ['Ġ', {}], ['日本', { lstrip: true, special: false, normalized: true }],
      ['ab\u0308', { normalized: true }], ['\u0301x', { special: false, normalized: true }],
      ['the', { special: false, single_word: true }], ['ſ', { special: false }]];
    yield ['strips', file({ vocab, merges }, {
      normalizer: { type: 'NFC' }, pre_tokenizer: sequence(split(patterns.qwen), byteLevel()),
      added_tokens: list(vocab, more) })];
    yield ['strips_raw', file({ vocab, merges }, {
      pre_tokenizer: sequence(split(patterns.gpt4o), byteLevel()), added_tokens: list(vocab, more) })];
  }
  {
    const { vocab, merges } = base();
    yield ['steps', file({ vocab, merges: pairs(merges) }, {
      normalizer: { type: 'NFC' },
      pre_tokenizer: sequence(split(patterns.llama3), split(patterns.gpt4o, true), byteLevel(true)),
      added_tokens: list(vocab, ['<|x|>', ['<think>', { special: false }]]),
      post_processor: { type: 'Sequence', processors: [] } })];
    yield ['whole', file({ vocab, merges }, { pre_tokenizer: byteLevel(false), post_processor: byteLevel(false) })];
  }
  {
    const { vocab, merges } = base(400, alphabet.filter((_, b) => b < 0x80 && b !== 0x65 && b !== 0x31));
    yield ['fewer_bytes', file({ vocab, merges }, { pre_tokenizer: byteLevel(true) })];
  }
  {
    // Merges in an order that no training gives: products of late merges take part in early ones.
    const { vocab, merges } = base();
    const next = random(7), shuffled = [...merges];
    for (let i = shuffled.length - 1; i > 0; i--) {
      const j = Math.floor(next() * (i + 1));
      [shuffled[i], shuffled[j]] = [shuffled[j], shuffled[i]];
    }
    for (let k = 2; k < 40; k++) {
      const t = 'a'.repeat(k);
      if (!(t in vocab)) vocab[t] = Object.keys(vocab).length;
      for (const h of [1, k >> 1, k - 1]) {
        const a = 'a'.repeat(h), b = 'a'.repeat(k - h);
        if (h > 0 && a in vocab && b in vocab) shuffled.splice(Math.floor(next() * shuffled.length), 0, `${a} ${b}`);
      }
    }
    yield ['shuffled', file({ vocab, merges: ['#version: 0.2', ...shuffled] }, {
      pre_tokenizer: sequence(split(patterns.qwen), byteLevel()) })];
  }
  { // blanks that are tokens and strip blanks
    const { vocab, merges } = base();
    const blanks = [['\t', { lstrip: true, rstrip: true }], ['\n', { lstrip: true, rstrip: true, normalized: true }],
      ['\r', {}], ['<X>', { rstrip: true }], ['<Y>', { lstrip: true }], [' <Z>', { lstrip: true, rstrip: true }]];
    yield ['blanks', file({ vocab, merges }, {
      normalizer: { type: 'NFC' }, pre_tokenizer: sequence(split(patterns.qwen), byteLevel()),
      added_tokens: list(vocab, blanks) })];
  }
}
