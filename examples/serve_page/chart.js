// The fan chart: candles of the past, then bands and median of the forecast, as SVG. Nothing but the DOM is used.
const NS = "http://www.w3.org/2000/svg";
const EDGE = { left: 12, right: 76, top: 14, bottom: 30 };

// The picture's own units are pixels, so that text keeps its size on a narrow screen.
export function sizeOf(holder) {
  const width = Math.max(320, Math.min(960, holder.clientWidth || 960));
  return { ...EDGE, width, height: Math.max(280, Math.round(width * 0.44)) };
}

function make(parent, name, attributes = {}, text = "") {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

// Round steps: 1, 2 or 5 times a power of ten, about `count` of them.
export function ticks(low, high, count = 6) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(value);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

const number = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

// "2024-06-18T09:35:00" as the axis shows it: without the time if all are at midnight, without the year if all are of one.
export function clock(times) {
  const daily = times.every((time) => time.slice(11, 16) === "00:00" || time.length < 16);
  const oneYear = new Set(times.map((time) => time.slice(0, 4))).size === 1;
  return (time) => (daily ? time.slice(0, 10) : `${time.slice(oneYear ? 5 : 0, 10)} ${time.slice(11, 16)}`);
}

// past: bars {timestamp, open, high, low, close}; ahead: {timestamps, quantiles: {"0.05": {close}, ...}}, or null before there is one.
export function draw(holder, past, ahead, label, describe) {
  const horizon = ahead ? ahead.timestamps.length : 0;
  const total = past.length + horizon;
  const times = [...past.map((bar) => bar.timestamp), ...(ahead ? ahead.timestamps : [])];
  const band = (level) => ahead.quantiles[level].close;
  const lows = [...past.map((bar) => bar.low), ...(ahead ? band("0.05") : [])];
  const highs = [...past.map((bar) => bar.high), ...(ahead ? band("0.95") : [])];
  const span = Math.max(...highs) - Math.min(...lows) || Math.abs(highs[0]) * 0.01 || 1;
  const [low, high] = [Math.min(...lows) - span * 0.05, Math.max(...highs) + span * 0.05];
  const { width, height, left, right, top, bottom } = sizeOf(holder);
  const x = (place) => left + ((place + 0.5) / total) * (width - left - right);
  const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);

  holder.replaceChildren();
  const svg = make(holder, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const { found, digits } = ticks(low, high);
  for (const value of found) {
    make(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) });
    make(svg, "text", { class: "tick", x: width - right + 8, y: y(value) + 4 }, number(value, digits));
  }
  const show = clock(times);
  const marks = Math.min(Math.floor(width / 150), total);
  for (let mark = 0; mark < marks; mark++) {
    const place = Math.round((mark * (total - 1)) / Math.max(1, marks - 1));
    const anchor = mark === 0 ? "start" : mark === marks - 1 ? "end" : "middle";
    make(svg, "text", { class: "tick", x: x(place), y: height - 8, "text-anchor": anchor }, show(times[place]));
  }
  candles(svg, past, x, y, (width - left - right) / total);
  if (ahead) fan(svg, past, band, horizon, x, y, { top, bottom: height - bottom });
  cursor(holder, svg, { total, x, left, right, top, bottom, width, height }, (place) => describe(place, show(times[place])));
  return svg;
}

function candles(svg, past, x, y, room) {
  const body = Math.max(1, Math.min(9, room * 0.66));
  const group = make(svg, "g", { class: "candles" });
  past.forEach((bar, place) => {
    const [upper, lower] = [y(Math.max(bar.open, bar.close)), y(Math.min(bar.open, bar.close))];
    make(group, "line", { x1: x(place), x2: x(place), y1: y(bar.high), y2: y(bar.low) });
    const kind = bar.close >= bar.open ? "up" : "down";
    make(group, "rect", { class: kind, x: x(place) - body / 2, y: upper, width: body, height: Math.max(1, lower - upper) });
  });
}

// Bands start at the last close, where everything is still certain.
function fan(svg, past, band, horizon, x, y, edge) {
  const start = past[past.length - 1].close;
  const points = (values) => [start, ...values].map((value, step) => `${x(past.length - 1 + step).toFixed(1)},${y(value).toFixed(1)}`);
  const group = make(svg, "g", { class: "fan" });
  for (const [name, lower, upper] of [["wide", "0.05", "0.95"], ["half", "0.25", "0.75"]]) {
    make(group, "polygon", { class: name, points: [...points(band(upper)), ...points(band(lower)).reverse()].join(" ") });
  }
  make(group, "polyline", { class: "median", points: points(band("0.5")).join(" ") });
  const now = (x(past.length - 1) + x(past.length)) / 2;
  make(group, "line", { class: "now", x1: now, x2: now, y1: edge.top, y2: edge.bottom });
}

// A line and a box with the values of one bar, moved by the pointer and by the arrow keys.
function cursor(holder, svg, frame, describe) {
  const line = make(svg, "line", { class: "cursor", y1: frame.top, y2: frame.height - frame.bottom, visibility: "hidden" });
  const box = document.createElement("output");
  box.className = "tip";
  box.hidden = true;
  holder.append(box);
  let at = frame.total - 1;
  const move = (place) => {
    at = Math.max(0, Math.min(frame.total - 1, place));
    line.setAttribute("x1", frame.x(at));
    line.setAttribute("x2", frame.x(at));
    line.setAttribute("visibility", "visible");
    box.textContent = describe(at);
    box.hidden = false;
    box.classList.toggle("leftwards", at > frame.total / 2);
    box.style.left = `${(100 * frame.x(at)) / frame.width}%`;
  };
  const leave = () => {
    line.setAttribute("visibility", "hidden");
    box.hidden = true;
  };
  svg.addEventListener("pointermove", (event) => {
    const seen = svg.getBoundingClientRect();
    const place = ((event.clientX - seen.left) / seen.width) * frame.width - frame.left;
    move(Math.floor((place / (frame.width - frame.left - frame.right)) * frame.total));
  });
  svg.addEventListener("pointerleave", leave);
  holder.onblur = leave;
  holder.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -frame.total, End: frame.total }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    move(box.hidden && Math.abs(step) === 1 ? at : at + step);
  };
}
