// All runs of this coordinator, side by side, and what lies on disk.

import { el, replace, setText } from "./dom.js";
import { bytes, count, percent, score } from "./format.js";
import { get } from "./api.js";
import { LineChart, TONES } from "./chart.js";

const EVERY = 3000;
const MOST_LINES = 12;

export class RunsPage {
  constructor(choose) {
    this.choose = choose;
    this.table = el("div");
    this.chart = new LineChart({ label: "Score of each run", height: 260 });
    this.disk = el("div");
    this.diskSub = el("span", { class: "soft" });
    this.asked = 0;
    this.storage = el("section", { class: "card", "aria-label": "Storage" }, el("header", {}, el("h2", {}, "Storage"), this.diskSub), this.disk);
    this.nodes = [
      el("section", { class: "card", "aria-label": "Runs" }, el("header", {}, el("h2", {}, "Runs")), this.table),
      el("div", { class: "columns" },
        el("section", { class: "card", "aria-label": "Scores" }, el("header", {}, el("h2", {}, "Score by round")), el("div", { class: "body" }, this.chart.node)),
        this.storage),
    ];
  }

  async update(state) {
    replace(this.table, state.runs.length ? this.list(state) : el("p", { class: "empty" }, "No run is queued."));
    if (Date.now() - this.asked < EVERY) return;
    this.asked = Date.now();
    const [scores, disk] = await Promise.all([get("/api/scores"), get("/api/storage")]);
    const runs = scores.runs.filter((run) => run.points.length).slice(-MOST_LINES);
    const metric = runs[0]?.metric || "accuracy";
    const names = Object.fromEntries(state.runs.map((run) => [run.run_id, run.title]));
    const y = (value) => score(metric, value);
    this.chart.show({
      series: runs.filter((run) => run.metric === metric).map((run, at) => ({ name: names[run.id] || run.id, tone: at % TONES, points: run.points })),
      x: count, y, xTitle: "round", whole: true, domain: y(0.5).includes("%") ? [0, 1] : null,
    });
    this.storage.hidden = !disk.stored;
    if (disk.stored) this.show(disk.stored);
  }

  list(state) {
    const heads = ["Run", "Experiment", "Method", "State", "Rounds"];
    return el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, heads.map((head, at) => el("th", { scope: "col", class: at === 4 ? "num wide" : at === 2 ? "wide" : null }, head)))),
      el("tbody", {}, state.runs.map((run) => el("tr", {},
        el("td", { class: "name" }, el("button", { class: "link", type: "button", "aria-current": run.run_id === state.run.id ? "true" : null, onclick: () => this.choose(run.run_id) }, run.run_id)),
        el("td", { class: "name", title: run.title }, run.title),
        el("td", { class: "wide" }, run.method),
        el("td", {}, el("span", { class: `badge ${run.state}` }, run.state)),
        el("td", { class: "num wide" }, count(run.rounds)))))));
  }

  show(stored) {
    const parts = Object.entries(stored.parts).filter(([, size]) => size).sort((one, other) => other[1] - one[1]);
    const whole = parts.reduce((sum, [, size]) => sum + size, 0);
    setText(this.diskSub, `${bytes(whole)} in ${stored.path}, ${bytes(stored.free)} free of ${bytes(stored.total)} (${percent(stored.free, stored.total)})`);
    replace(this.disk, el("table", {}, el("tbody", {}, parts.map(([name, size]) => el("tr", {},
      el("td", { class: "name", title: name }, name), el("td", { class: "num" }, bytes(size)))))));
  }
}
