// The page: a CSV goes to /bars, its bars to /predict, the answer into the chart. No other host is asked for anything.
import { draw } from "./chart.js";
import { current, say, speak } from "./words.js";

const MAX_BYTES = 4 * 2 ** 20; // MAX_BODY of serve.py
const WIDE = 720; // pixels that the picture must have for
const SHOWN = { narrow: 50, wide: 120 }; // so many bars of the past
const LEVELS = [0.05, 0.25, 0.5, 0.75, 0.95];
const get = (id) => document.getElementById(id);
const state = { file: null, name: "", bars: null, forecast: null, run: 0, link: null, told: null };

// status: said again in the other language when that is chosen. `key` of words.js with values, or a plain text of the service.
function tell(kind, key, values = {}) {
  state.told = { kind, key, values };
  const status = get("status");
  status.className = kind;
  status.textContent = values.text ?? say(key, values);
}

class Refused extends Error {}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused(say("gone"));
  }
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => null);
  const found = Array.isArray(body?.detail) ? body.detail : [];
  const lines = found.map(({ field, message }) => (field && field !== "csv" ? `${field}: ${message}` : message));
  throw new Refused(lines.join("\n") || say("refused", { status: answer.status }));
}

// One at a time: what an older run still brings is dropped.
async function work(steps) {
  const run = ++state.run;
  get("go").disabled = true;
  get("chart").setAttribute("aria-busy", "true");
  try {
    await steps(() => run === state.run);
  } catch (error) {
    if (run !== state.run) return;
    if (!(error instanceof Refused)) throw error;
    tell("wrong", "", { text: error.message });
  } finally {
    if (run === state.run) {
      get("go").disabled = !state.bars;
      get("chart").removeAttribute("aria-busy");
    }
  }
}

function readFile(file) {
  return work(async (still) => {
    Object.assign(state, { file, bars: null, forecast: null });
    get("result").hidden = true;
    if (file.size > MAX_BYTES) throw new Refused(say("notText", { name: file.name, limit: MAX_BYTES / 2 ** 20 }));
    tell("busy", "reading", { name: file.name });
    const query = new URLSearchParams({ name: file.name, missing: get("missing").checked ? "drop" : "error" });
    const found = await ask(`/bars?${query}`, { method: "POST", body: file, headers: { "content-type": "text/csv" } });
    if (!still()) return;
    Object.assign(state, { name: found.name, bars: found.bars });
    await forecast(still);
  });
}

async function forecast(still) {
  const [horizon, started] = [get("horizon").valueAsNumber, performance.now()];
  tell("busy", "forecasting", { horizon, name: state.name });
  const asked = { bars: state.bars, horizon, quantiles: LEVELS, calendar: get("calendar").value || null };
  for (const id of ["samples", "temperature", "top_p", "seed"]) asked[id] = get(id).valueAsNumber;
  const options = { method: "POST", body: JSON.stringify(asked), headers: { "content-type": "application/json" } };
  const found = await ask("/predict", options);
  if (!still()) return;
  state.forecast = found;
  show();
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  tell("done", "done", { name: state.name, horizon, lookback: found.lookback, seconds });
}

// As many decimals as the size of the last close asks for, the same for every price.
function price(value) {
  const decimals = Math.max(0, Math.min(8, 4 - Math.floor(Math.log10(state.bars[state.bars.length - 1].close))));
  return value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function show() {
  const { bars, forecast: found, name } = state;
  get("result").hidden = false; // first, so that the picture has a width
  const past = bars.slice(-(get("chart").clientWidth < WIDE ? SHOWN.narrow : SHOWN.wide));
  const horizon = found.timestamps.length;
  const [last, end] = [bars[bars.length - 1].close, horizon - 1];
  const close = (level, step) => found.quantiles[level].close[step];
  get("heading").textContent = say("heading", { name, horizon });
  const move = close("0.5", end) / last - 1;
  const facts = {
    last: price(last),
    end: `${price(close("0.5", end))} (${move >= 0 ? "+" : ""}${(100 * move).toFixed(2)} %)`,
    band: `${price(close("0.05", end))} – ${price(close("0.95", end))}`,
    up: `${(100 * found.prob_up[end]).toFixed(0)} %`,
  };
  get("facts").replaceChildren(...Object.entries(facts).flatMap(([key, value]) => [text("dt", say(key)), text("dd", value)]));
  draw(get("chart"), past, found, say("chart", { past: past.length, horizon }), (place, when) => {
    if (place < past.length) {
      const bar = past[place];
      return `${when}\nO ${price(bar.open)}  H ${price(bar.high)}\nL ${price(bar.low)}  C ${price(bar.close)}`;
    }
    const step = place - past.length;
    const [p5, p25, p50, p75, p95] = LEVELS.map((level) => price(close(level, step)));
    return `${when}\n${say("median")} ${p50}\n50 %: ${p25} – ${p75}\n90 %: ${p5} – ${p95}`;
  });
  fillTable(found);
}

function text(tag, content) {
  const element = document.createElement(tag);
  element.textContent = content;
  return element;
}

function fillTable(found) {
  const head = [say("time"), ...LEVELS.map((level) => `${100 * level} %`), say("above")];
  const rows = found.timestamps.map((time, step) => [
    time.replace("T", " "),
    ...LEVELS.map((level) => price(found.quantiles[level].close[step])),
    `${(100 * found.prob_up[step]).toFixed(0)} %`,
  ]);
  const line = (cells, tag) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => text(tag, cell)));
    return row;
  };
  const [top, body] = [document.createElement("thead"), document.createElement("tbody")];
  top.append(line(head, "th"));
  body.append(...rows.map((row) => line(row, "td")));
  get("table").replaceChildren(top, body);

  const columns = ["timestamps", ...LEVELS.map((level) => `close_${100 * level}`), "prob_up"];
  const numbers = found.timestamps.map((time, step) => [time, ...LEVELS.map((level) => found.quantiles[level].close[step]), found.prob_up[step]]);
  if (state.link) URL.revokeObjectURL(state.link);
  state.link = URL.createObjectURL(new Blob([[columns, ...numbers].map((row) => row.join(",")).join("\n") + "\n"], { type: "text/csv" }));
  get("download").href = state.link;
}

// Bars of a random walk, so that the page can be tried without a file.
function madeUp() {
  let [close, seed] = [100, 7];
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  const lines = ["timestamps,open,high,low,close,volume"];
  for (let hour = 0; hour < 240; hour++) {
    const open = close;
    close = open * (1 + 0.012 * (random() + random() + random() - 1.5));
    const [high, low] = [Math.max(open, close) * (1 + 0.004 * random()), Math.min(open, close) * (1 - 0.004 * random())];
    const time = new Date(Date.UTC(2024, 0, 1, hour)).toISOString().slice(0, 19);
    lines.push([time, ...[open, high, low, close].map((value) => value.toFixed(4)), Math.round(1000 + 9000 * random())].join(","));
  }
  return new File([lines.join("\n") + "\n"], `${say("sampleName").replace(/ /g, "_")}.csv`, { type: "text/csv" });
}

function take(files) {
  if (files.length > 1) tell("wrong", "one");
  else if (files.length === 1) readFile(files[0]);
}

get("file").addEventListener("change", (event) => take(event.target.files));
get("file").addEventListener("click", (event) => (event.target.value = "")); // so that the same file, corrected, can be chosen again
get("sample").addEventListener("click", () => take([madeUp()]));
get("missing").addEventListener("change", () => state.file && readFile(state.file));
get("calendar").addEventListener("change", () => state.bars && get("form").requestSubmit());
get("form").addEventListener("submit", (event) => {
  event.preventDefault();
  work(forecast);
});
for (const name of ["dragover", "dragenter"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // else a file dropped beside the field would replace the page
    get("drop").classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) document.addEventListener(name, () => get("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});
get("language").addEventListener("click", () => {
  speak();
  if (state.told) tell(state.told.kind, state.told.key, state.told.values);
  if (state.forecast) show();
});

let resized = 0;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => state.forecast && show(), 150);
});

speak(current());
ask("/health").then(
  (health) => {
    get("model").textContent = health.model;
    for (const id of ["horizon", "samples"]) get(id).max = health.limits[id];
    get("horizon").value = Math.min(get("horizon").valueAsNumber, health.limits.horizon);
  },
  (error) => tell("wrong", "", { text: error.message }),
);
