// Line charts in SVG: axes with units, a crosshair for the mouse, and the arrow keys for who has none.

import { el, svg, replace } from "./dom.js";

const MARGIN = { top: 10, right: 14, bottom: 34 };
const LETTER = 6.6;
const MOST_DRAWN = 800;
export const TONES = 6;

// Returns the ends of `count` or so steps from low to high, at round numbers.
function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

// Returns a number's text without the zeros that say nothing on an axis.
const short = (text) => text.replace(/(\.\d*?)0+(?=\s|$)/, "$1").replace(/\.(?=\s|$)/, "");

function thinned(points) {
  const step = Math.ceil(points.length / MOST_DRAWN);
  return step < 2 ? points : points.filter((_, at) => at % step === 0 || at === points.length - 1);
}

function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? low - 1 : low;
}

export function swatch(tone) {
  return svg("svg", { width: 22, height: 8, "aria-hidden": "true" }, svg("line", { class: `line s${tone}`, x1: 0, y1: 4, x2: 22, y2: 4 }));
}

export class LineChart {
  // `label` names the chart for who cannot see it.
  constructor({ label, height = 220 }) {
    this.height = height;
    this.label = label;
    this.data = { series: [], x: String, y: String, xTitle: "", domain: null };
    this.picture = svg("svg", { height, role: "img", tabindex: 0, "aria-label": label });
    this.tip = el("div", { class: "tip", hidden: true, "aria-live": "polite" });
    this.legend = el("div", { class: "legend" });
    this.node = el("div", {}, el("div", { class: "chart" }, this.picture, this.tip), this.legend);
    this.at = null;
    this.drawn = "";
    new ResizeObserver(() => this.draw(true)).observe(this.node);
    this.picture.addEventListener("pointermove", (event) => this.point(this.unscale(event.offsetX)));
    this.picture.addEventListener("pointerleave", () => this.point(null));
    this.picture.addEventListener("blur", () => this.point(null));
    this.picture.addEventListener("keydown", (event) => this.key(event));
  }

  // Series are {name, tone, points: [[x, y], ...]}, in the order of x; x and y make texts of numbers.
  show(data) {
    this.data = data;
    this.draw(false);
  }

  draw(always) {
    const width = Math.floor(this.node.clientWidth);
    const { series, domain } = this.data;
    const last = series.map((each) => [each.name, each.points.length, each.points.at(-1)]);
    const now = JSON.stringify([width, this.data.xTitle, last]);
    if (width < 40 || (!always && now === this.drawn)) return;
    this.drawn = now;
    const all = series.flatMap((each) => each.points);
    if (!all.length) {
      replace(this.picture, svg("text", { x: width / 2, y: this.height / 2, "text-anchor": "middle" }, "Nothing measured yet"));
      replace(this.legend);
      return;
    }
    const xs = all.map((point) => point[0]);
    const ys = all.map((point) => point[1]);
    const xLow = Math.min(...xs), xHigh = Math.max(...xs);
    let yLow = Math.min(...ys), yHigh = Math.max(...ys);
    if (domain) [yLow, yHigh] = [Math.max(domain[0], yLow - (yHigh - yLow) * 0.08 - 0.01), Math.min(domain[1], yHigh + (yHigh - yLow) * 0.08 + 0.01)];
    else [yLow, yHigh] = [yLow >= 0 ? 0 : yLow, yHigh + (yHigh - yLow || Math.abs(yHigh) || 1) * 0.05];
    const marks = ticks(yLow, yHigh, 5).map((value) => [value, short(this.data.y(value))]);
    const left = Math.max(30, 14 + LETTER * Math.max(...marks.map(([, text]) => text.length), 0));
    const inner = { width: width - left - MARGIN.right, height: this.height - MARGIN.top - MARGIN.bottom };
    this.scale = {
      x: (value) => left + (xHigh === xLow ? 0.5 : (value - xLow) / (xHigh - xLow)) * inner.width,
      y: (value) => MARGIN.top + (1 - (value - yLow) / (yHigh - yLow || 1)) * inner.height,
    };
    this.unscale = (at) => xLow + ((at - left) / inner.width) * (xHigh - xLow);
    const bottom = this.height - MARGIN.bottom;
    const grid = marks.map(([value, text]) => [
      svg("line", { class: "grid", x1: left, x2: width - MARGIN.right, y1: this.scale.y(value), y2: this.scale.y(value) }),
      svg("text", { x: left - 8, y: this.scale.y(value) + 4, "text-anchor": "end" }, text),
    ]);
    const steps = xLow === xHigh ? [xLow] : ticks(xLow, xHigh, Math.max(4, Math.floor(inner.width / 110))).filter((value) => !this.data.whole || Number.isInteger(value));
    const below = steps.map((value) =>
      svg("text", { x: this.scale.x(value), y: bottom + 15, "text-anchor": "middle" }, this.data.x(value)),
    );
    const lines = series.map((each) => {
      const points = thinned(each.points).map(([x, y]) => `${this.scale.x(x).toFixed(1)},${this.scale.y(y).toFixed(1)}`);
      if (points.length === 1) {
        const [x, y] = points[0].split(",");
        return svg("circle", { class: `dots s${each.tone}`, cx: x, cy: y, r: 3 });
      }
      return svg("polyline", { class: `line s${each.tone}`, points: points.join(" ") });
    });
    this.cursor = svg("line", { class: "cursor", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
    replace(
      this.picture,
      grid,
      svg("line", { class: "axis", x1: left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
      below,
      svg("text", { class: "title", x: left + inner.width / 2, y: this.height - 4, "text-anchor": "middle" }, this.data.xTitle),
      lines,
      this.cursor,
    );
    replace(
      this.legend,
      series.length > 1 ? series.map((each) => el("span", {}, swatch(each.tone), `${each.name} ${this.data.y(each.points.at(-1)[1])}`)) : [],
    );
    const main = series[0].points.at(-1);
    this.picture.setAttribute("aria-label", `${this.label}: ${series[0].name} ${this.data.y(main[1])} at ${this.data.x(main[0])}. Arrow keys read single points.`);
    if (this.at !== null) this.point(this.at);
  }

  unscale() {
    return null;
  }

  point(x) {
    const series = this.data.series.filter((each) => each.points.length);
    this.at = x;
    const out = x === null || Number.isNaN(x) || !series.length;
    this.tip.hidden = out;
    this.cursor?.setAttribute("visibility", out ? "hidden" : "visible");
    if (out) return;
    const longest = series.reduce((one, other) => (other.points.length > one.points.length ? other : one));
    const at = longest.points[nearest(longest.points, x)][0];
    const place = this.scale.x(at);
    this.cursor.setAttribute("x1", place);
    this.cursor.setAttribute("x2", place);
    replace(
      this.tip,
      el("strong", {}, `${this.data.xTitle} ${this.data.x(at)}`),
      series.map((each) => el("div", {}, el("span", {}, each.name), el("span", {}, this.data.y(each.points[nearest(each.points, at)][1])))),
    );
    const width = this.node.clientWidth;
    this.tip.style.left = place > width / 2 ? "auto" : `${place + 12}px`;
    this.tip.style.right = place > width / 2 ? `${width - place + 12}px` : "auto";
  }

  key(event) {
    const longest = this.data.series.reduce((one, other) => (other.points.length > one.length ? other.points : one), []);
    if (!longest.length) return;
    const here = this.at === null ? longest.length - 1 : nearest(longest, this.at);
    const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: longest.length - 1 }[event.key];
    if (event.key === "Escape") this.point(null);
    if (next === undefined) return;
    event.preventDefault();
    this.point(longest[Math.min(Math.max(next, 0), longest.length - 1)][0]);
  }
}
