// Writes the goldens of this folder with the reference tokenizer: small tokenizers of our own (tests/oracle/made.mjs) and
// what the reference makes of some texts, so that `make test` needs no network.
//
//   (cd tests/oracle && npm install)
//   node tests/golden/tokenizer/make.mjs
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { generator } from '../../oracle/generate.mjs';
import { madeTokenizers } from '../../oracle/made.mjs';
const reference = createRequire(new URL('../../oracle/', import.meta.url))('tokenizers');
const here = new URL('./', import.meta.url);

const fixed = ['', ' ', 'Hello world', "I'll say it's 1234 o'clock, THEY'RE late'S", 'a  b   c\n\n  d\t\te \r\n f ', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',
  'a'.repeat(200), ' '.repeat(70), 'cafe\u0301 <normalized> caf\u00e9', 'x<lstrip> y  <rstrip>  z <both> <single_word>a <single_word>.', "it\u2019s '\u017f 'ſx",
  '<|im_end|>\u0338', '\uac00\u11a8\u1100\u1161\u11a8', '\u0958\u2126\ufa10\u{2f800}', 'e\u0323\u0302\u0301', '\u0301\u0323', 'a\u0315\u0300\u05ae\u{1d15f}',
  '日本語 中文 한국어 ไทย', '12345678901', '🏳️‍🌈👩‍👩‍👧‍👦', '\u0000\u0001\u007f', '<a><b><c>', '<|eot_id|><|eot_id', 'HTTPServer iPhone McDONALDs', '!!!\n\n///\n'];

async function golden(folder, tokenizer, specials, seed, prepare = (t) => t) {
  const next = generator(seed, specials);
  const texts = [...fixed, ...Array.from({ length: 30 }, next)];
  const lines = [];
  for (const text of texts) {
    const ids = (await tokenizer.encode(prepare(text), null, { addSpecialTokens: false })).getIds();
    lines.push(JSON.stringify({ text, ids, decoded: await tokenizer.decode(ids, false), skipped: await tokenizer.decode(ids, true) }));
  }
  for (let i = 0; i < 10; i++) { // ids that give broken UTF-8
    const ids = Array.from({ length: 6 }, (_, k) => (i * 37 + k * 101 + i * k * 13) % 300);
    lines.push(JSON.stringify({ ids, decoded: await tokenizer.decode(ids, false), skipped: await tokenizer.decode(ids, true) }));
  }
  fs.writeFileSync(new URL('cases.jsonl', folder), lines.join('\n') + '\n');
}

let seed = 1;
const made = new Map(madeTokenizers());
for (const [name, json] of made) {
  const folder = new URL(`${name}/`, here);
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(new URL('tokenizer.json', folder), JSON.stringify(json) + '\n');
  await golden(folder, reference.Tokenizer.fromFile(new URL('tokenizer.json', folder).pathname), json.added_tokens.map((t) => t.content), seed++);
}

// vocab.json and merges.txt: what a tokenizer.json of the same content gives. Dream normalises before anything else.
const nfc = reference.nfcNormalizer();
seed = 11;
for (const [name, tokenizerClass, pattern, prepare] of [
  ['two_files_gpt2', 'GPT2Tokenizer', 'gpt2'], ['two_files_qwen', 'Qwen2Tokenizer', 'llada'], ['two_files_dream', 'DreamTokenizer', 'llada', (t) => nfc.normalizeString(t)]]) {
  const folder = new URL(`${name}/`, here);
  const json = structuredClone(made.get(pattern));
  const base = Object.keys(json.model.vocab).length;
  if (pattern === 'llada') json.added_tokens = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|mask|>'].map((content, i) => ({ ...json.added_tokens[0], id: base + i, content }));
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(new URL('vocab.json', folder), JSON.stringify(json.model.vocab) + '\n');
  fs.writeFileSync(new URL('merges.txt', folder), '#version: 0.2\n' + json.model.merges.join('\n') + '\n');
  const decoder = Object.fromEntries(json.added_tokens.map(({ id, ...rest }) => [String(id), rest]));
  fs.writeFileSync(new URL('tokenizer_config.json', folder), JSON.stringify({ tokenizer_class: tokenizerClass, add_prefix_space: false, eos_token: '<|endoftext|>',
    ...(pattern === 'llada' ? { added_tokens_decoder: decoder } : {}) }) + '\n');
  await golden(folder, reference.Tokenizer.fromString(JSON.stringify(json)), json.added_tokens.map((t) => t.content), seed++, prepare);
}

// Added tokens that only tokenizer_config.json declares, or declares otherwise than tokenizer.json does: ids and text
// are those of a tokenizer.json that has them all, as transformers would save it.
{
  const folder = new URL('declared/', here);
  const whole = made.get('strips'), rest = structuredClone(whole), decoder = [], named = {}, more = [];
  const names = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];
  rest.added_tokens = [];
  whole.added_tokens.forEach(({ id, ...token }, i) => {
    const last = i >= whole.added_tokens.length - 4, other = { lstrip: !token.lstrip, normalized: !token.normalized, special: false };
    if (i < 8) rest.added_tokens.push({ id, ...token, ...(i % 2 ? other : {}) });
    if (i < 8 ? i % 2 : !last) decoder.push([String(id > 666 ? id + i : id), { ...token, special: token.special && i % 3 > 0 }]);
    if (token.special && i % 3 === 0 && i < 21) named[names[i / 3]] = i % 2 ? token.content : { __type: 'AddedToken', ...token };
    if (last) more.push(token);
  });
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(new URL('tokenizer.json', folder), JSON.stringify(rest) + '\n');
  const members = decoder.reverse().map(([id, token]) => `${JSON.stringify(id)}:${JSON.stringify(token)}`); // (not sorted)
  const others = JSON.stringify({ ...named, additional_special_tokens: more }).slice(1);
  fs.writeFileSync(new URL('tokenizer_config.json', folder), `{"added_tokens_decoder":{${members.join(',')}},${others}\n`);
  for (const token of whole.added_tokens.slice(-4)) token.special = true;
  const reader = reference.Tokenizer.fromString(JSON.stringify(whole));
  await golden(folder, reader, whole.added_tokens.map((t) => t.content), 14);
}

// Unicode: a hash over every code point for each property and for NFC, and single cases to look at when one differs.
const fnv = (hash, text) => {
  for (const byte of Buffer.from(text, 'utf8')) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  return hash;
};
const all = [];
for (let c = 0; c < 0x110000; c++) if (c < 0xd800 || c > 0xdfff) all.push(String.fromCodePoint(c));
const empty = structuredClone(made.get('whole'));
const lines = [];
for (const name of ['\\p{L}', '\\p{N}', '\\s', '[\\p{Lu}\\p{Lt}]', '[\\p{Lm}\\p{Lo}]', '\\p{Ll}', '\\p{M}']) {
  empty.pre_tokenizer = { type: 'Split', pattern: { Regex: name }, behavior: 'Removed', invert: true };
  const found = reference.Tokenizer.fromString(JSON.stringify(empty)).getPreTokenizer().preTokenizeString(all.join('')).map(([s]) => s).join('');
  lines.push({ class: name, count: Array.from(found).length, hash: fnv(0xcbf29ce484222325n, found).toString(16) });
}
const around = [['', ''], ['a', ''], ['', '\u0301'], ['\u0323', '\u0301'], ['\u1100', ''], ['a\u0301', '\u0300']];
for (const [before, after] of around) {
  let hash = 0xcbf29ce484222325n;
  for (const c of all) hash = fnv(hash, nfc.normalizeString(before + c + after));
  lines.push({ before, after, hash: hash.toString(16) });
}
const next = generator(99, []);
for (let i = 0; i < 200; i++) { const text = next(); if (nfc.normalizeString(text) !== text) lines.push({ text, nfc: nfc.normalizeString(text) }); }
const many = '\u0301\u0323\u0334\u0345'.repeat(50);
lines.push({ text: `e${many}`, nfc: nfc.normalizeString(`e${many}`) });
fs.writeFileSync(new URL('unicode.jsonl', here), lines.map((l) => JSON.stringify(l)).join('\n') + '\n');
