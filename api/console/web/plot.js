// Plots as inline SVG: stacked bars over time, drawn at the width they have, in the colours of the theme.

import { drawn, make } from "./dom.js";

const HEIGHT = 190, LEFT = 56, RIGHT = 8, TOP = 10, BOTTOM = 24;

/** The steps of an axis from 0: round numbers, four or so, whole ones for counts. */
export function ticks(most, isWhole) {
  if (!(most > 0)) return [0, 1];
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((by) => by * power).find((each) => each >= rough);
  if (isWhole) step = Math.max(1, Math.ceil(step));
  const found = [0];
  while (found.at(-1) < most) found.push(Number((found.at(-1) + step).toPrecision(12)));
  return found;
}

const short = (value) => (value >= 1e6 ? `${value / 1e6}M` : value >= 1e4 ? `${value / 1e3}k` : String(value));

function timeWords(ms, spanMs) {
  const date = new Date(ms);
  return spanMs > 2 * 86400e3
    ? date.toLocaleDateString(undefined, { month: "short", day: "numeric" })
    : date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });
}

function draw(width, { times, stepMs, series, unit, isWhole }) {
  const totals = times.map((_, at) => series.reduce((sum, { values }) => sum + values[at], 0));
  const marks = ticks(Math.max(...totals, 0), isWhole);
  const most = marks.at(-1), spanMs = times.length * stepMs;
  const x = (at) => LEFT + (at * (width - LEFT - RIGHT)) / times.length;
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / most);
  const svg = drawn("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
  for (const mark of marks) {
    svg.append(drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark) }),
      drawn("text", { class: "tick", x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end" }, short(mark)));
  }
  const every = Math.max(1, Math.ceil(times.length / Math.max(2, Math.floor(width / 110))));
  const barWidth = Math.max(1, (width - LEFT - RIGHT) / times.length - 1.5);
  times.forEach((time, at) => {
    if (at % every === 0) svg.append(drawn("text", { class: "tick", x: x(at), y: HEIGHT - 6 }, timeWords(time, spanMs)));
    let base = 0;
    series.forEach(({ name, values }, index) => {
      const value = values[at];
      if (!value) return;
      const tall = y(base) - y(base + value);
      const bar = drawn("rect", { class: `s${index}`, x: x(at), y: y(base + value), width: barWidth, height: Math.max(tall, 0.5) });
      bar.append(drawn("title", {}, `${timeWords(time, spanMs)}: ${name} ${Number(value.toPrecision(4))} ${unit}`));
      svg.append(bar);
      base += value;
    });
  });
  return svg;
}

/** A figure with its caption and legend, for `{title, times, stepMs, series: [{name, values}], unit, isWhole}`. */
export function bars(plot) {
  const { title, series, unit } = plot;
  const place = make("div", { className: "plot" });
  const sums = series.map(({ name, values }) => `${name} ${Number(values.reduce((one, other) => one + other, 0).toPrecision(4))}`);
  const figure = make("figure", { role: "img", "aria-label": `${title}: ${sums.join(", ")} ${unit}`.trim() },
    make("figcaption", {}, make("strong", {}, title), " ", make("span", { className: "quiet" }, unit),
      make("span", { className: "legend" }, series.length > 1 ? series.map(({ name }, index) =>
        make("span", { className: `key k${index}` }, name)) : null)),
    place);
  let drawnAt = 0;
  new ResizeObserver(() => {
    const width = Math.floor(place.clientWidth);
    if (width && width !== drawnAt) place.replaceChildren(draw(drawnAt = width, plot));
  }).observe(place);
  return figure;
}
