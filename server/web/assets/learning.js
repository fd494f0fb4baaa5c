// What the run has learned: scores and loss of the global model, and of each sub-model, by round, time or bytes.

import { el, replace } from "./dom.js";
import { bytes, count, digits, score, seconds } from "./format.js";
import { LineChart, TONES } from "./chart.js";

const AXES = {
  round: { title: "round", at: (point) => point.round, text: count, whole: true },
  time: { title: "time", at: (point) => point.seconds, text: seconds },
  bytes: { title: "bytes", at: (point) => point.down + point.up, text: bytes },
};

export class LearningPage {
  constructor() {
    this.axis = "round";
    this.metric = new LineChart({ label: "Score of the global model" });
    this.loss = new LineChart({ label: "Loss of the global model" });
    this.tiers = new LineChart({ label: "Score of each sub-model", height: 260 });
    this.moved = new LineChart({ label: "Bytes of each round", height: 260 });
    this.heading = el("h2");
    this.tierHeading = el("h2");
    this.table = el("div");
    this.buttons = Object.keys(AXES).map((name) =>
      el("button", { type: "button", "aria-pressed": String(name === this.axis), onclick: () => this.choose(name) }, `by ${name}`));
    const card = (head, chart, ...more) => el("section", { class: "card" }, el("header", {}, head, ...more), el("div", { class: "body" }, chart.node));
    this.nodes = [
      el("div", { class: "columns" },
        card(this.heading, this.metric, el("span", { class: "spacer" }), el("span", { class: "choice", role: "group", "aria-label": "Axis" }, this.buttons)),
        card(el("h2", {}, "Loss"), this.loss)),
      el("div", { class: "columns" },
        card(this.tierHeading, this.tiers),
        card(el("h2", {}, "Payload bytes of a round"), this.moved)),
      el("section", { class: "card" }, el("header", {}, el("h2", {}, "Latest rounds")), this.table),
    ];
  }

  choose(name) {
    this.axis = name;
    this.buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === `by ${name}`)));
    if (this.state) this.update(this.state);
  }

  update(state) {
    this.state = state;
    const { run, points } = state;
    const axis = AXES[this.axis];
    const metric = run.metric || "accuracy";
    const title = run.metric_title || metric;
    const y = (value) => score(metric, value);
    const domain = y(0.5).includes("%") ? [0, 1] : null;
    const common = { x: axis.text, xTitle: axis.title, whole: axis.whole };
    const of = (read) => points.map((point) => [axis.at(point), read(point)]).filter(([, value]) => typeof value === "number");
    this.heading.textContent = capital(title);
    this.tierHeading.textContent = `${capital(title)} of each sub-model`;
    this.metric.show({ ...common, series: named(title, of((point) => point.scores?.[metric])), y, domain });
    this.loss.show({ ...common, series: named("loss", of((point) => point.scores?.loss)), y: digits });
    this.moved.show({ ...common, series: named("bytes", of((point) => point.moved)), y: bytes });
    const labels = [...new Set(points.flatMap((point) => Object.keys(point.tiers)))];
    const series = labels.map((label, at) => ({ name: label, tone: at % TONES, points: of((point) => point.tiers[label]?.[metric]) }));
    this.tiers.show({ ...common, series: series.filter((each) => each.points.length), y, domain });
    replace(this.table, points.length ? table(points.slice(-12).reverse(), metric, title) : el("p", { class: "empty" }, "No round has closed yet."));
  }
}

const named = (name, points) => (points.length ? [{ name, tone: 0, points }] : []);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function table(points, metric, title) {
  const heads = [["Round"], [capital(title)], ["Loss"], ["Updates"], ["Down + up", "wide"], ["Took", "wide"], ["", "text"]];
  const rows = points.map((point) => [
    count(point.round), score(metric, point.scores?.[metric]), digits(point.scores?.loss),
    point.cohort ? `${count(point.updates)} / ${count(point.cohort)}` : count(point.updates),
    bytes(point.moved), seconds(point.took), point.abandoned ? `abandoned: ${point.abandoned}` : "",
  ]);
  const cls = (at) => (at < 6 ? `num ${heads[at][1] || ""}`.trim() : "text soft");
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, heads.map(([head], at) => el("th", { scope: "col", class: cls(at) }, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, at) => el("td", { class: cls(at) }, cell)))))));
}
