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
  check("a token is picked", inspected.startsWith("Position 26"), inspected);
  check("and shown", await page.locator("#text .picked").count() === 1);
  await page.keyboard.press("ArrowUp");
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

for (const test of [testSeed, testKeys, testPointer, testNames, testLooks, testMarkup, testOthers]) {
  try {
    await test();
  } catch (error) {
    check(test.name, false, error.message);
  }
}
await browser.close();
console.log(`test_browser: ${passed} passed, ${failed} failed`);
process.exit(failed || !passed ? 1 : 0);
