// The page of `tokenskip trace --html`, used as a person would: scrubbed, played, driven by keys, on a laptop and a
// phone, in light and dark.
import { chromium } from "playwright-core";
import path from "node:path";

const folder = path.resolve(process.argv[2]);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
let passed = 0, failed = 0;

function check(what, condition, found) {
  if (condition) passed++;
  else {
    failed++;
    console.log(`failed: ${what}${found === undefined ? "" : `: ${JSON.stringify(found)}`}`);
  }
}

// A page with this file in it; what it complains of and asks for is kept.
async function open(name, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1366, height: 900 }, ...options });
  page.complaints = [];
  page.on("console", message => page.complaints.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", error => page.complaints.push(error.message));
  page.on("dialog", dialog => { page.complaints.push("dialog"); dialog.dismiss(); });
  page.on("request", request => {
    const url = request.url();
    if (!/^(file|data):/.test(url) || (url.startsWith("file:") && !url.endsWith(name)))
      page.complaints.push(`request: ${url}`);
  });
  await page.goto(`file://${folder}/${name}`);
  return page;
}

const pixels = (page, id) => page.evaluate(i => document.getElementById(i).toDataURL(), id);
const innerText = (page, selector) => page.locator(selector).innerText();
const partingOf = page => page.evaluate(() => JSON.parse(document.getElementById("data").textContent).trace.parting);
const where = page => innerText(page, "#where");
const text = page => innerText(page, "#text");
const scrub = (page, to) => page.locator("#scrubber").evaluate((e, v) => {
  e.value = v;
  e.dispatchEvent(new Event("input", { bubbles: true }));
}, to);

async function close(page, name) {
  check(`${name}: no errors, warnings or requests`, page.complaints.length === 0, page.complaints);
  await page.close();
}

async function testSeed() {
  const page = await open("seed.html");
  check("the conclusion stands on top", (await innerText(page, "#conclusion")).includes("generation is damaged"));
  check("the failure is marked", (await innerText(page, "#conclusion mark")).startsWith("they keep layer-3 states"));
  check("numbers are there", await page.locator("#numbers dd").count() >= 6);
  const parting = await partingOf(page);
  check("it opens where the answers part", (await where(page)).includes(`(pass ${parting.given.pass})`),
    await where(page));
  check("at the token", (await innerText(page, "#inspector")).startsWith(`Position ${parting.position},`));
  check("both texts are there", await page.locator("#sides .side").count() === 2);
  check("the first difference is marked in both", await page.locator("#sides .first.differs").count() === 2);
  check("with its probabilities", await page.locator("#parting-table tbody tr").count() === 4);
  await page.locator("#sides .side").first().locator(".first").click();
  check("a click goes to the pass that committed it",
    (await where(page)).includes(`(pass ${parting.baseline.pass})`), await where(page));
  check("in that generation", await page.getByRole("radio", { name: "Baseline" }).isChecked());
  await page.keyboard.press("b");
  await page.keyboard.press("Home");
  const first = {
    grid: await pixels(page, "grid"),
    text: await text(page),
    layers: await page.locator("#layers").innerHTML(),
    where: await where(page),
  };
  await scrub(page, 12);
  check("the scrubber changes where", (await where(page)).startsWith("Block 0, step 12"), await where(page));
  check("the scrubber changes the grid", await pixels(page, "grid") !== first.grid);
  check("the scrubber changes the text", await text(page) !== first.text);
  check("the scrubber changes the curves", await page.locator("#layers").innerHTML() !== first.layers);
  check("masked and skipped tokens are drawn as such", await page.locator("#text .mask.skip").count() > 0);
  check("curves of three kinds", await page.locator("#layers path").count() === 3);
  const cosines = await pixels(page, "cosines");
  await scrub(page, 20);
  check("the heatmap changes", await pixels(page, "cosines") !== cosines);
  await scrub(page, 0);
  check("a block's start compares nothing", await page.locator("#cosine-empty").isVisible());
  await page.screenshot({ path: `${folder}/seed_light.png`, fullPage: true });
  await close(page, "seed");
}

async function testKeys() {
  const page = await open("seed.html");
  const { position } = await partingOf(page);
  await page.keyboard.press("Home");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  check("arrow keys step", (await where(page)).startsWith("Block 0, step 2"), await where(page));
  await page.keyboard.press("ArrowLeft");
  check("and back", (await where(page)).startsWith("Block 0, step 1"), await where(page));
  await page.locator("#scrubber").focus();
  await page.keyboard.press("ArrowRight");
  check("also on the scrubber, once", (await where(page)).startsWith("Block 0, step 2"), await where(page));
  await page.keyboard.press("End");
  check("End goes to the last step", (await where(page)).startsWith("Block 1, step 31"), await where(page));
  check("nothing is masked there", await page.locator("#text .mask").count() === 0);
  await page.keyboard.press("Home");
  await page.keyboard.press("ArrowDown");
  let inspected = await innerText(page, "#inspector");
  check("a token is picked", inspected.startsWith(`Position ${position + 1}`), inspected);
  check("and shown", await page.locator("#text .picked").count() === 1);
  for (let i = position + 1; i >= 26; i--) await page.keyboard.press("ArrowUp");
  inspected = await innerText(page, "#inspector");
  check("picking goes round", inspected.startsWith("Position 89"), inspected);
  await page.locator("#scrubber").blur();
  await page.keyboard.press("b");
  check("b shows the baseline", await page.getByRole("radio", { name: "Baseline" }).isChecked());
  await page.getByRole("button", { name: "Play" }).focus();
  await page.keyboard.press("Enter");
  check("Play becomes Pause", await page.getByRole("button", { name: "Pause" }).isVisible());
  await page.waitForTimeout(900);
  await page.keyboard.press("Enter");
  check("playing moves on", !(await where(page)).startsWith("Block 0, step 0 "), await where(page));
  await close(page, "keys");
}

async function testPointer() {
  const page = await open("default.html");
  check("without a difference it opens at the last pass",
    await page.locator("#scrubber").evaluate(e => e.value === e.max), await where(page));
  check("and says so", (await innerText(page, "#parting-hint")).startsWith("All 64 tokens are the same."),
    await innerText(page, "#parting-hint"));
  await page.keyboard.press("Home");
  check("nothing is damaged by default",
    (await innerText(page, "#conclusion mark")).startsWith("No masked token was judged stable"));
  await page.getByRole("button", { name: "Next step" }).click();
  check("buttons step", (await where(page)).startsWith("Block 0, step 1"));
  await page.locator("#grid").click({ position: { x: 200, y: 60 } });
  check("a click in the grid picks a token", (await innerText(page, "#inspector")).startsWith("Position"));
  check("and a step", !(await where(page)).startsWith("Block 0, step 1 "), await where(page));
  await page.locator("#text .t").nth(9).click();
  check("a click in the text picks that token",
    await page.locator("#text .t").nth(9).evaluate(e => e.classList.contains("picked")));
  await page.locator("#work rect").nth(4).click({ force: true });
  check("a bar of the work goes to its step", (await where(page)).startsWith("Block 0, step 4"), await where(page));
  await page.locator("#details summary").click();
  await page.locator("#table tbody tr").nth(31).waitFor({ timeout: 5000 });
  check("the table has the block's tokens", await page.locator("#table tbody tr").count() === 32);
  await page.locator("#which label").filter({ hasText: "Baseline" }).click();
  check("the baseline is a click away", await page.getByRole("radio", { name: "Baseline" }).isChecked());
  await close(page, "pointer");
}

async function testNames() {
  const page = await open("seed.html");
  for (const [role, name] of [
    ["slider", "Step"], ["button", "Play"], ["button", "Previous step"], ["button", "Next step"],
    ["radio", "TokenSkip"], ["radio", "Baseline"], ["group", "Steps of the generation"], ["group", "Generation shown"],
  ])
    check(`${role} "${name}" has its name`, await page.getByRole(role, { name, exact: true }).count() === 1);
  check("every picture has a name", await page.evaluate(() =>
    [...document.querySelectorAll("[role=img]")].every(e => e.getAttribute("aria-label"))));
  await page.keyboard.press("Home");
  const said = await page.locator("#scrubber").getAttribute("aria-valuetext");
  check("the scrubber says where it is", said.startsWith("block 0, step 0"));
  check("a heading for every section", await page.evaluate(() =>
    [...document.querySelectorAll("section[aria-labelledby]")]
      .every(e => document.getElementById(e.getAttribute("aria-labelledby")))));
  await close(page, "names");
}

// Contrast of text with what is behind it, as WCAG counts it.
function contrast(selector) {
  const parse = colour => colour.match(/[\d.]+/g).map(Number);
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(selector);
  let behind = element;
  while (behind && /, 0\)$|transparent/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const a = luminance(parse(getComputedStyle(element).color));
  const b = luminance(parse(getComputedStyle(behind || document.body).backgroundColor));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}

async function testLooks() {
  for (const colorScheme of ["light", "dark"])
    for (const [kind, width, height] of [["laptop", 1366, 900], ["phone", 390, 844], ["small_phone", 320, 640]]) {
      const deviceScaleFactor = kind === "laptop" ? 1 : 2;
      const page = await open("seed.html", { viewport: { width, height }, colorScheme, deviceScaleFactor });
      await scrub(page, 10);
      const name = `${kind}_${colorScheme}`;
      const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      check(`${name}: nothing sticks out sideways`, over <= 0, over);
      const readable = ["#conclusion", "#conclusion mark", ".hint", "dt", "#where span", "#text .now", "#play", "h2"];
      for (const selector of readable) {
        const ratio = await page.evaluate(contrast, selector);
        check(`${name}: ${selector} can be read`, ratio >= 4.5, ratio);
      }
      check(`${name}: buttons are large enough for a finger`, await page.evaluate(() =>
        document.getElementById("play").getBoundingClientRect().height >= 40));
      await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
      await close(page, name);
    }
}

// Labels of the grid as they are drawn: none may touch another, and each has its size.
async function testLong() {
  for (const width of [1366, 700]) {
    const page = await open("long.html", { viewport: { width, height: 900 } });
    const labels = await page.evaluate(() => {
      const drawn = [], context = CanvasRenderingContext2D.prototype, fill = context.fillText;
      context.fillText = function (text, x, y) {
        if (this.canvas.id === "grid")
          drawn.push({ text, x, y, width: this.measureText(text).width, size: parseFloat(this.font) });
        return fill.apply(this, arguments);
      };
      dispatchEvent(new Event("resize"));
      context.fillText = fill;
      return drawn;
    });
    const name = `128 passes, ${width} wide`;
    const passes = labels.filter(l => l.x > 0 && /^(pass )?\d+$/.test(l.text));
    const blocks = labels.filter(l => l.text.startsWith("block"));
    check(`${name}: every block has its label`, blocks.length === 4, blocks.map(l => l.text));
    check(`${name}: passes have numbers`, passes.length >= 5, passes.map(l => l.text));
    for (const row of [blocks, passes])
      check(`${name}: labels do not touch`,
        row.every((l, i) => !i || l.x >= row[i - 1].x + row[i - 1].width + 2), row);
    const tokens = labels.filter(l => l.x === 0).sort((a, b) => a.y - b.y);
    check(`${name}: every token has a label`, tokens.length >= 128, tokens.length);
    check(`${name}: one above the other`, tokens.every((l, i) => !i || l.y - tokens[i - 1].y >= 11));
    check(`${name}: all of a size that can be read`, labels.every(l => l.size >= 11));
    await page.screenshot({ path: `${folder}/long_${width}.png`, fullPage: true });
    await close(page, name);
  }
}

// Dark on the screen, white on paper; a page of A4 takes everything, and nothing is cut.
async function testPaper() {
  const page = await open("seed.html", { viewport: { width: 794, height: 1123 }, colorScheme: "dark" });
  await page.emulateMedia({ media: "print", colorScheme: "dark" });
  await page.evaluate(() => dispatchEvent(new Event("beforeprint")));
  const look = await page.evaluate(() => ({
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    play: document.getElementById("play").offsetParent === null,
    over: document.documentElement.scrollWidth - innerWidth,
    wide: [...document.querySelectorAll("canvas, svg")]
      .filter(e => e.getBoundingClientRect().right > innerWidth).length,
    where: document.getElementById("where").offsetParent !== null,
  }));
  check("paper is white", look.background === "rgb(255, 255, 255)" && look.ink === "rgb(0, 0, 0)", look);
  check("buttons are not printed, the place is", look.play && look.where, look);
  check("nothing is wider than the paper", look.over <= 0 && look.wide === 0, look);
  const corner = await page.evaluate(() => {
    const canvas = document.getElementById("grid"), row = canvas.height / 2 | 0;
    return [...canvas.getContext("2d").getImageData(canvas.width / 2 | 0, row, 1, 1).data];
  });
  check("the grid is in the colours of paper", corner[0] + corner[1] + corner[2] > 300, corner);
  await page.screenshot({ path: `${folder}/paper.png`, fullPage: true });
  const pdf = await page.pdf({ format: "A4" });
  check("it prints", pdf.length > 20000 && pdf.subarray(0, 4).toString() === "%PDF", pdf.length);
  await page.evaluate(() => dispatchEvent(new Event("afterprint")));
  check("afterwards the screen is dark again", await page.evaluate(() =>
    !document.documentElement.classList.contains("print")));
  await close(page, "paper");
}

async function testRules() {
  const rows = await open("rows.html");
  await scrub(rows, 5);
  check("rows left out are no danger by themselves", await rows.locator("#text .mask.left").count() > 0);
  check("no cosines, no panel of cosines", !(await rows.locator("#cosine-section").isVisible()));
  await rows.locator("#details summary").click();
  const reasons = await innerText(rows, "#table");
  for (const reason of ["left out of the pass", "it ran: it may be committed", "it ran: the pass before committed it"])
    check(`the table says "${reason}"`, reasons.includes(reason));
  check("what the full pass would say of rows left out", /left out of the pass\s+\S+\s+“.*” [01]\.\d+/.test(reasons),
    reasons.slice(0, 600));
  await rows.screenshot({ path: `${folder}/rows.png`, fullPage: true });
  await close(rows, "rows");
  const versus = await open("versus.html");
  check("both settings have their names",
    (await innerText(versus, "#sides")).includes("--skip-preset seed --no-threshold"));
  check("the given ones too", await versus.getByRole("radio", { name: "Given" }).isChecked());
  await close(versus, "versus");
}

async function testMarkup() {
  const page = await open("markup.html");
  const shown = await text(page);
  check("markup in a prompt is text", shown.includes("</script><script>window.broken = 1"), shown.slice(0, 200));
  check("and is never run", await page.evaluate(() => window.broken === undefined));
  await scrub(page, 5);
  await close(page, "markup");
}

async function testOthers() {
  const chinese = await open("chinese.html");
  const shown = await text(chinese);
  check("characters of several tokens are put together",
    shown.replace(/\u200b/g, "").includes("\u725b\u987f\u662f\u8c01\uff1f \u{1F34E}"), shown.slice(0, 60));
  await close(chinese, "chinese");
  const ids = await open("ids.html");
  check("ids stand for tokens without a tokenizer", /\[\d+\]/.test(await text(ids)), (await text(ids)).slice(0, 100));
  await ids.keyboard.press("End");
  await close(ids, "ids");
  const off = await open("off.html");
  check("TokenSkip off: the baseline alone", !(await off.locator("#which").isVisible()));
  await off.keyboard.press("ArrowRight");
  await close(off, "off");
}

const tests = [testSeed, testKeys, testPointer, testNames, testLooks, testLong, testPaper, testRules, testMarkup,
  testOthers];
for (const test of tests) {
  try {
    await test();
  } catch (error) {
    check(test.name, false, error.message);
  }
}
await browser.close();
console.log(`test_browser: ${passed} passed, ${failed} failed`);
process.exit(failed || !passed ? 1 : 0);
