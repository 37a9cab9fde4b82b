// Seeded strings for comparing tokenizers: every plane, everything that normalises, strips, splits or merges oddly.
export function random(seed) { // mulberry32
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const words = (
  'the of and to a in is it you that he was for on are with as his they at be this have from or one had by hot word ' +
  'but what some we can out other were all there when up use your how said an each she which do their time if will ' +
  'way about many then them write would like so these her long make thing see him two has look more day could go ' +
  'come did number sound no most people my over know water ' +
  'Newton physics TokenSkip LLaMA HTTPServer iPhone McDonald naïve café Straße ÉCOLE Übung ǅungla ǈubav ʰaspirated'
).split(' ');
const ranges = [
  [0x20, 0x7e], [0x20, 0x7e], [0x00, 0x1f], [0x7f, 0xff], [0x100, 0x24f], [0x250, 0x2ff], [0x300, 0x36f],
  [0x370, 0x3ff], [0x400, 0x52f], [0x530, 0x5ff], [0x600, 0x6ff], [0x700, 0x8ff], [0x900, 0xdff], [0xe00, 0xfff],
  [0x1000, 0x10ff], [0x1100, 0x11ff], [0x1200, 0x18af], [0x1900, 0x1aff], [0x1b00, 0x1cff], [0x1d00, 0x1dff],
  [0x1e00, 0x1fff], [0x2000, 0x206f], [0x2070, 0x24ff], [0x2500, 0x2bff], [0x2c00, 0x2fff], [0x3000, 0x30ff],
  [0x3100, 0x33ff], [0x3400, 0x4dbf], [0x4e00, 0x9fff], [0xa000, 0xabff], [0xac00, 0xd7ff], [0xe000, 0xe0ff],
  [0xf900, 0xfaff], [0xfb00, 0xfdff], [0xfe00, 0xffff], [0x10000, 0x10fff], [0x11000, 0x11fff], [0x12000, 0x16fff],
  [0x17000, 0x1b2ff], [0x1bc00, 0x1cfff], [0x1d000, 0x1d7ff], [0x1d800, 0x1e9ff], [0x1ee00, 0x1faff],
  [0x20000, 0x2a6df], [0x2a700, 0x2fa1f], [0x30000, 0x323af], [0x323b0, 0xe01ff], [0xe0000, 0xe01ef],
  [0xf0000, 0x10ffff],
];
const marks = [0x300, 0x301, 0x302, 0x303, 0x304, 0x306, 0x307, 0x308, 0x30a, 0x30c, 0x315, 0x31b, 0x323, 0x327,
  0x328, 0x32d, 0x330, 0x338, 0x340, 0x341, 0x343, 0x344, 0x345, 0x34f, 0x5b0, 0x5bc, 0x5c1, 0x64b, 0x651, 0x654,
  0x655, 0x670, 0x93c, 0x9bc, 0x9be, 0x9d7, 0xb3e, 0xb56, 0xb57, 0xbbe, 0xbd7, 0xc56, 0xcc2, 0xcd5, 0xd3e, 0xd57,
  0xdca, 0xdcf, 0xddf, 0xe48, 0xf71, 0xf72, 0xf74, 0xf80, 0x102e, 0x1b35, 0x3099, 0x309a, 0x110ba, 0x11127, 0x1133e,
  0x11357, 0x114b0, 0x115af, 0x1d165, 0x1d16e, 0x1d172, 0x20d0, 0x20e1, 0xfe0f, 0x200d, 0xfe20, 0x1e000, 0xe0100];
const composable = [0x41, 0x45, 0x49, 0x4f, 0x55, 0x61, 0x65, 0x69, 0x6f, 0x75, 0x73, 0x53, 0x3c, 0x3d, 0x3e, 0xc6,
  0xd8, 0xe5, 0xea, 0x1a0, 0x1af, 0x391, 0x3b1, 0x3c9, 0x415, 0x438, 0x627, 0x648, 0x6d5, 0x928, 0x9c7, 0xb47, 0xbc6,
  0xcc6, 0xd46, 0xdd9, 0x1025, 0x1100, 0x1112, 0x1161, 0x1175, 0x11a7, 0x11a8, 0x11c2, 0xac00, 0xac01, 0xd788, 0x304b,
  0x30cf, 0x1b05, 0x11099, 0x11131, 0x1d157, 0x2190, 0x2203, 0x2282, 0x1fbf, 0x1ffe];
const spaces = [' ', ' ', ' ', '  ', '   ', '\t', '\n', '\r', '\r\n', '\n\n', '\v', '\f', '\x85', '\xa0', '\u1680',
  '\u2000', '\u2003', '\u2009', '\u200a', '\u200b', '\u2028', '\u2029', '\u202f', '\u205f', '\u3000', '\u180e',
  '\ufeff', '\x1c', '\x1f', ' \n', '\n ', '\t\n', '/\n', '\n/'];
const contractions = ["'s", "'S", "'\u017f", "'t", "'T", "'re", "'RE", "'Re", "'rE", "'ve", "'VE", "'m", "'M", "'ll",
  "'LL", "'lL", "'d", "'D", '\u2019s', "'", "''", "'x", "'l", "'r", "'v", "'\u212a", "'sS", "'lls", "'\u0130", "n't"];
const digits = ['0', '1', '42', '123', '1234', '12345', '999999', '3.14', '1,000', '٠١٢', '۱۲۳۴', '०१२', '৪৫', '๓',
  '０１２３', '𝟘𝟙𝟚', 'Ⅷ', '½', '²³', '①②', '〇', '一二三', '𒐀', '༠༳'];
const emoji = ['😀', '👍🏽', '👩‍👩‍👧‍👦', '🏳️‍🌈', '🇺🇳🇺🇳', '❤️', '☺︎', '👨🏿‍🚀', '🫠', '#️⃣', '🏴󠁧󠁢󠁥󠁮󠁧󠁿', '🧑‍🤝‍🧑'];
const code = ['if (x == 1) {', '}\n', '\t\treturn x;\n', '// comment', '/* a */', 'a->b', '!==', '...', '"quoted"',
  '`x`', '<div>', '</a>', '{{', '##', '://', '==>', '\\n', '$_', 'x_y', 'C++', '%d', '&&', '||', '@me', '~/a/b'];

export function generator(seed, specials) {
  const next = random(seed);
  const int = (n) => Math.floor(next() * n);
  const pick = (list) => list[int(list.length)];
  const point = ([low, high]) => {
    const c = low + int(high - low + 1);
    return c >= 0xd800 && c <= 0xdfff ? 0xfffd : c;
  };
  const some = (n, f) => Array.from({ length: 1 + int(n) }, f).join('');
  const cased = (w) => [w, w.toUpperCase(), w[0].toUpperCase() + w.slice(1), w + w.toUpperCase()][int(4)];
  const kinds = [
    () => some(6, () => (next() < 0.8 ? ' ' : '') + cased(pick(words))),
    () => some(6, () => (next() < 0.8 ? ' ' : '') + pick(words)),
    () => { const r = pick(ranges); return some(8, () => String.fromCodePoint(point(r))); },
    () => some(5, () => String.fromCodePoint(point(pick(ranges)))),
    () => String.fromCodePoint(pick(composable)) + some(4, () => String.fromCodePoint(pick(marks))),
    () => String.fromCodePoint(point(pick(ranges))) + some(3, () => String.fromCodePoint(pick(marks))),
    () => some(3, () => pick(spaces)),
    () => pick(spaces).repeat(1 + int(12)),
    () => (next() < 0.5 ? pick(words) : '') + pick(contractions) + (next() < 0.3 ? pick(words) : ''),
    () => some(3, () => pick(digits)),
    () => String(int(10 ** (1 + int(9)))),
    () => some(2, () => pick(emoji)),
    () => some(3, () => pick(code) + (next() < 0.3 ? ' ' : '')),
    () => String.fromCodePoint(point(pick(ranges))).repeat(1 + int(40)),
    () => some(8, () => pick(['A', 'b', 'Ǆ', 'ǅ', 'ǆ', 'ʰ', 'ª', '中', '\u0301', 'É', 'ß', 'ﬁ', "'s", '!', ' ', '1'])),
    () => String.fromCodePoint(0x1100 + int(19), 0x1161 + int(21)) +
      (next() < 0.5 ? String.fromCodePoint(0x11a7 + int(28)) : ''),
    () => some(6, () => pick('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'.split(''))),
  ];
  const special = () => {
    let s = pick(specials);
    if (next() < 0.15) s = s.slice(0, -1 - int(3));
    if (next() < 0.15) s += String.fromCodePoint(pick(marks));
    return (next() < 0.4 ? pick(spaces) : '') + s + (next() < 0.4 ? pick(spaces) : '');
  };
  return () => some(7, () => (specials.length && next() < 0.12 ? special() : pick(kinds)()));
}

// Conversations as chat templates see them: a system message or none, any order of turns, thoughts, tools' answers.
export function conversations(seed, count) {
  const specials = ['<|eot_id|>', '<|im_end|>', '<think>', '</think>', '<tool_response>', '</tool_response>'];
  const next = random(seed), text = generator(seed + 1, specials);
  const pick = (list) => list[Math.floor(next() * list.length)];
  const clean = (t) => t.replaceAll('\0', '.'); // the API takes NUL-terminated text
  const lines = () => pick(['', '\n', '\n\n']);
  const thought = () => lines() + '<think>' + lines() + pick(['', 'hm', ' a\nb ', '<think>x', '\n']) +
    pick(['', '\n']) + '</think>' + lines();
  const content = () => pick(['', ' ', '\n', '  ', '\x1c', '\u200b']) + clean(text()) +
    pick(['', ' ', '\n\n', '\t', '\x85\x1f', '\ufeff', '\u3000\xa0']);
  const toolAnswer = () => pick(['', ' ']) + '<tool_response>' + pick(['', 'sunny']) + '</tool_response>' +
    pick(['', ' ']);
  const message = (role) => {
    if (role === 'assistant' && next() < 0.5)
      return { role, content: pick(['', 'x']) + thought() + pick(['', content(), thought()]) };
    if (role === 'user' && next() < 0.2) return { role, content: toolAnswer() };
    return { role, content: content() };
  };
  return Array.from({ length: count }, () => {
    const list = next() < 0.4 ? [message('system')] : [];
    for (let n = Math.floor(next() * 6) + (list.length ? 0 : 1); n > 0; n--)
      list.push(message(pick(['user', 'assistant', 'user', 'assistant', 'system'])));
    return list;
  });
}
