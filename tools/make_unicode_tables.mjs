// Writes the Unicode tables of tokenskip.h from what the reference implementation (npm tokenizers) does to each code
// point, rather than from the Unicode database: its regular expressions and its normalizer follow different versions.
//
//   (cd tests/oracle && npm install)
//   node tools/make_unicode_tables.mjs FILE [--check]
//
// FILE is rewritten between the two marker lines; with --check it is only compared (exit 1 where it differs).
import fs from 'node:fs';
import { createRequire } from 'node:module';
const require = createRequire(new URL('../tests/oracle/', import.meta.url));
const reference = require('tokenizers');

const BEGIN = '/* ---- begin of tables: made by tools/make_unicode_tables.mjs, do not edit */';
const END = '/* ---- end of tables */';

const isSurrogate = (c) => c >= 0xd800 && c <= 0xdfff;
const codePoints = [];
for (let c = 0; c < 0x110000; c++) if (!isSurrogate(c)) codePoints.push(c);
const everything = codePoints.map((c) => String.fromCodePoint(c)).join('');
const chars = (s) => Array.from(s, (ch) => ch.codePointAt(0));

function tokenizer(parts) {
  return reference.Tokenizer.fromString(JSON.stringify({
    version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null, pre_tokenizer: null,
    post_processor: null, decoder: null,
    model: { type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null,
      fuse_unk: false, byte_fallback: false, ignore_merges: false, vocab: {}, merges: [] },
    ...parts,
  }));
}

// ---- character classes: which characters a Split on the pattern takes out
function matching(pattern) {
  const split = tokenizer({
    pre_tokenizer: { type: 'Split', pattern: { Regex: pattern }, behavior: 'Removed', invert: true },
  });
  return new Set(split.getPreTokenizer().preTokenizeString(everything).flatMap(([s]) => chars(s)));
}
const sets = {};
for (const name of ['\\p{L}', '\\p{N}', '\\s', '\\p{Lu}', '\\p{Lt}', '\\p{Lm}', '\\p{Lo}', '\\p{Ll}', '\\p{M}'])
  sets[name] = matching(name);

// ---- \w and \s of the other regular expression engine, the one behind single_word, lstrip and rstrip of added tokens
async function addedToken(options, text, test) {
  const added = {
    id: 0, content: 'X', single_word: false, lstrip: false, rstrip: false, normalized: false, special: true, ...options,
  };
  const t = tokenizer({ added_tokens: [added] });
  const found = new Set();
  for (let i = 0; i < codePoints.length; i += 20000) {
    const batch = codePoints.slice(i, i + 20000);
    const encodings = await t.encodeBatch(batch.map((c) => text(String.fromCodePoint(c))), { addSpecialTokens: false });
    encodings.forEach((encoding, k) => { if (test(encoding)) found.add(batch[k]); });
  }
  return found;
}
const noneOrTwo = (e) => e.getIds().length === 0 || e.getIds().length === 2;
const word = await addedToken({ single_word: true }, (c) => `X${c}`, noneOrTwo);
word.delete(0x58); // "XX" holds the token twice; X is a word character by any account
word.add(0x58);
const wordBefore = await addedToken({ single_word: true }, (c) => `${c}X`, noneOrTwo);
wordBefore.add(0x58);
const strip = await addedToken({ rstrip: true }, (c) => `X${c}`, (e) => e.getOffsets()[0][1] > 1);
const same = (a, b) => a.size === b.size && [...a].every((x) => b.has(x));
if (!same(word, wordBefore)) throw new Error('\\w differs before and after a token');
strip.delete(0x58);
if (!same(strip, sets['\\s'])) throw new Error('the two engines disagree about \\s');

// ---- normalisation
const nfc = reference.nfcNormalizer(), nfd = reference.nfdNormalizer();
const NFC = (s) => nfc.normalizeString(s), NFD = (s) => nfd.normalizeString(s);
const S = (...c) => String.fromCodePoint(...c);
const isHangul = (c) => c >= 0xac00 && c < 0xac00 + 11172;

const decomposed = new Map(); // code point -> full decomposition as a string, Hangul syllables apart
for (const c of codePoints) {
  const d = NFD(S(c));
  if (isHangul(c)) {
    const i = c - 0xac00, t = i % 28;
    const expected = S(0x1100 + Math.floor(i / 588), 0x1161 + Math.floor((i % 588) / 28)) + (t ? S(0x11a7 + t) : '');
    if (d !== expected || NFC(d) !== S(c)) throw new Error(`Hangul ${c.toString(16)}`);
  } else if (d !== S(c)) decomposed.set(c, d);
}
const byDecomposition = new Map();
for (const [c, d] of decomposed) if (NFC(S(c)) === S(c) || !byDecomposition.has(d)) byDecomposition.set(d, c);

// c -> [a, b, composes]: one step, so that a's own entry finishes the work
const steps = [];
for (const [c, d] of decomposed) {
  const all = chars(d), composes = NFC(S(c)) === S(c);
  if (all.length === 1) { steps.push([c, all[0], 0, false]); continue; }
  const b = all[all.length - 1], front = S(...all.slice(0, -1));
  const a = all.length === 2 ? all[0] : byDecomposition.get(front);
  if (a === undefined) throw new Error(`no first half for ${c.toString(16)}`);
  if (decomposed.has(b)) throw new Error(`second half of ${c.toString(16)} decomposes`);
  if (composes !== (NFC(S(a, b)) === S(c))) throw new Error(`composition of ${c.toString(16)}`);
  steps.push([c, a, b, composes]);
}

// combining classes: only their order matters, and NFD shows it by what it swaps
const swaps = (x, y) => NFD(S(0x61, x, y)) === S(0x61, y, x) && x !== y;
const probes = [0x334, 0x345, 0x301, 0x323]; // classes 1, 240, 230, 220
const combines = (c) => probes.some((p) => swaps(c, p) || swaps(p, c));
const nonStarters = codePoints.filter((c) => !decomposed.has(c) && !isHangul(c) && combines(c));
nonStarters.sort((x, y) => (swaps(x, y) ? 1 : swaps(y, x) ? -1 : x - y));
const order = new Map();
let classIndex = 0, first = 0;
for (const c of nonStarters) {
  if (first === 0 || swaps(c, first)) { classIndex++; first = c; }
  order.set(c, classIndex);
}

const second = new Set(steps.filter((s) => s[3]).map((s) => s[2]));
for (let v = 0x1161; v <= 0x1175; v++) second.add(v);
for (let t = 0x11a8; t <= 0x11c2; t++) second.add(t);
const unstable = (c) => second.has(c) || order.has(c) || NFC(S(c)) !== S(c);

// ---- printing
const KINDS = ['OTHER', 'UPPER', 'LOWER', 'LETTER', 'MARK', 'NUMBER', 'SPACE'];
function kind(c) {
  const is = (name) => sets[name].has(c);
  if (is('\\p{Lu}') || is('\\p{Lt}')) return 1;
  if (is('\\p{Ll}')) return 2;
  if (is('\\p{Lm}') || is('\\p{Lo}')) return 3;
  if (is('\\p{L}')) throw new Error(`\\p{L} without a subclass: ${c.toString(16)}`);
  if (is('\\p{M}')) return 4;
  if (is('\\p{N}')) return 5;
  if (is('\\s')) return 6;
  return 0;
}
const property = (c) => (isSurrogate(c) ? 0 : kind(c) | (word.has(c) ? 8 : 0) | (unstable(c) ? 16 : 0));
const runs = [];
for (let c = 0, start = 0; c <= 0x110000; c++) {
  if (c === 0x110000 || (c > 0 && property(c) !== property(c - 1))) {
    runs.push([c - start, property(c - 1)]);
    start = c;
  }
}

function array(declaration, comment, values) {
  const lines = [];
  let line = '   ';
  for (const v of values) {
    if (line.length + v.length + 2 > 120) { lines.push(line); line = '   '; }
    line += ` ${v},`;
  }
  lines.push(line);
  return `/* ${comment} */\n${declaration} = {\n${lines.join('\n')}\n};\n`;
}
const hex = (n) => (n < 10 ? String(n) : `0x${n.toString(16)}`);
const shorter = (n) => (String(n).length <= hex(n).length ? String(n) : hex(n));

// combining classes as runs of (first code point, length * 64 + class)
const orderRuns = [];
for (const c of [...order.keys()].sort((x, y) => x - y)) {
  const last = orderRuns[orderRuns.length - 1];
  if (last && last.start + last.length === c && last.order === order.get(c)) last.length++;
  else orderRuns.push({ start: c, length: 1, order: order.get(c) });
}
const composing = steps.map((s, i) => [s, i]).filter(([s]) => s[3])
  .sort(([x], [y]) => x[1] - y[1] || x[2] - y[2]).map(([, i]) => i);
let text = `${BEGIN}\n`;
text += array('static const uint32_t tsk__unicode_runs[]',
  `${runs.length} runs that cover all code points from 0: length * 32 + property`,
  runs.map(([n, p]) => shorter(n * 32 + p)));
text += array('static const uint32_t tsk__unicode_orders[][2]',
  `${orderRuns.length} runs of code points that combine: ` +
    'the first, length * 64 + class (classes numbered in their order)',
  orderRuns.map((r) => `{${shorter(r.start)},${shorter(r.length * 64 + r.order)}}`));
text += array('static const uint32_t tsk__unicode_steps[][3]',
  `${steps.length} decompositions by one step, ascending: code point, first half, second half (0: there is none)`,
  steps.map(([c, a, b]) => `{${shorter(c)}, ${shorter(a)}, ${shorter(b)}}`).map((s) => s.replaceAll(', ', ',')));
text += array('static const uint16_t tsk__unicode_compositions[]',
  `${composing.length} of them compose again: their places in tsk__unicode_steps, ordered by the two halves`,
  composing.map(String));
text += `${END}\n`;

const file = process.argv[2], check = process.argv[3] === '--check';
const old = fs.readFileSync(file, 'utf8');
const from = old.indexOf(BEGIN), to = old.indexOf(END) + END.length + 1;
if (from < 0 || to <= from) throw new Error(`${file} has no table markers`);
const now = old.slice(0, from) + text + old.slice(to);
console.error(`${runs.length} runs, ${order.size} combining in ${classIndex} classes, ` +
  `${steps.length} decompositions, ${composing.length} compositions, ` +
  `${text.split('\n').length} lines; kinds ${KINDS.join(' ')}`);
if (check && now !== old) { console.error(`${file}: tables differ from what this script makes`); process.exit(1); }
if (!check) fs.writeFileSync(file, now);
