// The round that is open, or was last: each tier's devices by how far they are, and each device.

import { el, replace, setText } from "./dom.js";
import { DASH, bytes, clock, count, percent, score, seconds } from "./format.js";
import { LineChart } from "./chart.js";
import { PagedTable, Choice, search } from "./table.js";

export const PARTS = ["waiting", "told", "downloading", "training", "uploading", "delivered", "folded", "declined", "lost", "late", "quarantined"];

export const part = (name) => el("span", { class: "part" }, el("i", { class: `dot is-${name}`, "aria-hidden": "true" }), name);

export class RoundPage {
  constructor() {
    this.title = el("h2");
    this.sub = el("span", { class: "soft" });
    this.legend = el("div", { class: "legend" });
    this.bars = el("div", { class: "bars" });
    this.phases = el("p", { class: "soft" });
    this.notes = el("div");
    this.heading = el("h2");
    this.chart = new LineChart({ label: "Score of the global model", height: 150 });
    this.table = new PagedTable({
      caption: "Devices of the round",
      empty: "No round has been opened yet.",
      columns: [
        { title: "Device", sort: "name", cls: "name", cell: (row) => row.name },
        { title: "Tier", sort: "tier", wide: true, cls: "tier", cell: (row) => row.tier || DASH },
        { title: "Sub-model", sort: "spec", cls: "name", cell: (row) => row.spec },
        { title: "State", sort: "state", cell: (row) => part(row.state) },
        { title: "Transfer", wide: true, cell: (row) => transfer(row) },
        { title: "Trained in", sort: "seconds", num: true, wide: true, cell: (row) => (row.seconds ? seconds(row.seconds) : DASH) },
        { title: "Loss", sort: "loss", num: true, wide: true, cell: (row) => (row.loss === null ? DASH : row.loss.toFixed(3)) },
        { title: "Why", wide: true, cls: "text soft", cell: (row) => row.why },
      ],
    });
    this.tier = new Choice("Tier", "All tiers", (value) => this.table.narrow("tier", value));
    this.state = new Choice("State", "All states", (value) => this.table.narrow("state", value));
    this.state.offer(PARTS);
    this.nodes = [
      el("div", { class: "columns" },
        el("section", { class: "card", "aria-label": "Round" },
          el("header", {}, this.title, this.sub),
          el("div", { class: "body stacked" }, this.bars, this.legend, this.phases)),
        el("section", { class: "card", "aria-label": "Score and notes" },
          el("header", {}, this.heading), el("div", { class: "body" }, this.chart.node),
          el("header", { class: "second" }, el("h2", {}, "Latest notes")), this.notes)),
      el("section", { class: "card", "aria-label": "Devices of the round" },
        el("header", {}, el("h2", {}, "Devices of the round"), el("span", { class: "spacer" }), this.tier.node, this.state.node, search(this.table, "Search device")),
        this.table.node),
    ];
  }

  update(state) {
    const run = state.run;
    setText(this.title, run.round ? `Round ${run.round}${run.rounds ? ` of ${run.rounds}` : ""}` : "No round yet");
    setText(this.sub, standing(run, state.points));
    const tiers = run.tiers || [];
    replace(this.bars, tiers.length ? tiers.map((tier) => bar(tier)) : el("p", { class: "empty" }, run.awaited ? `Waiting: ${run.awaited}` : "The first round opens when enough devices have joined."));
    const seen = PARTS.filter((name) => (run.parts || {})[name]);
    replace(this.legend, seen.map((name) => el("span", {}, el("i", { class: `dot is-${name}` }), `${name} ${count(run.parts[name])}`)));
    setText(this.phases, phases(run.timed));
    const metric = run.metric || "accuracy";
    const title = run.metric_title || metric;
    const y = (value) => score(metric, value);
    setText(this.heading, title.charAt(0).toUpperCase() + title.slice(1));
    const points = state.points.map((point) => [point.round, point.scores?.[metric]]).filter(([, value]) => typeof value === "number");
    this.chart.show({ series: points.length ? [{ name: title, tone: 0, points }] : [], x: count, y, xTitle: "round", whole: true, domain: y(0.5).includes("%") ? [0, 1] : null });
    this.tier.offer(tiers.map((tier) => tier.tier).filter(Boolean));
    replace(this.notes, state.notes.length ? noteTable(state.notes.slice(-4).reverse()) : el("p", { class: "empty" }, "Nothing to look at."));
    this.table.load(`/api/runs/${encodeURIComponent(run.id)}/cohort`);
  }
}

function standing(run, points) {
  if (run.over) return run.ending ? `over: ${run.ending}` : "over";
  if (run.open) {
    const [done, total] = run.transfers || [0, 0];
    const moving = total ? `, ${bytes(done)} of ${bytes(total)} in transfer` : "";
    return `open since ${clock(run.opened)}${moving}`;
  }
  const last = points.at(-1);
  return last ? `closed: ${count(last.updates)} updates in ${seconds(last.took)}` : "";
}

function bar(tier) {
  const total = Object.values(tier.parts).reduce((one, other) => one + other, 0);
  const over = ["folded", "declined", "lost", "late", "quarantined"].reduce((sum, name) => sum + (tier.parts[name] || 0), 0);
  const said = PARTS.filter((name) => tier.parts[name]).map((name) => `${tier.parts[name]} ${name}`).join(", ");
  const stack = el("div", { class: "stack", role: "img", "aria-label": said, title: said }, PARTS.slice().reverse().filter((name) => tier.parts[name]).map((name) => {
    const piece = el("i", { class: `is-${name}` });
    piece.style.flexGrow = tier.parts[name];
    return piece;
  }));
  const labels = Object.entries(tier.labels).map(([label, number]) => `${label} × ${count(number)}`).join(", ");
  return el("div", { class: "tier" },
    el("span", { class: "name", title: tier.tier }, tier.tier || "no tier"), stack,
    el("span", { class: "num soft" }, `${count(over)} / ${count(total)}`),
    el("span", { class: "labels" }, labels));
}

function phases(timed) {
  if (!timed || !timed.phases) return "";
  const whole = timed.phases.reduce((sum, [, each]) => sum + each, 0);
  const parts = timed.phases.filter(([, each]) => each > 0.01 * whole).map(([name, each]) => `${name} ${seconds(each)}`);
  return `Round ${timed.round} spent: ${parts.join(", ")}`;
}

function transfer(row) {
  if (!row.total) return "";
  const text = `${bytes(row.done)} of ${bytes(row.total)}`;
  return el("span", { class: "part" }, el("progress", { value: row.done, max: row.total, "aria-label": text }), el("small", { class: "soft" }, percent(row.done, row.total)));
}

export function noteTable(notes) {
  return el("div", { class: "scroll" }, el("table", { class: "log" }, el("tbody", {}, notes.map((note) => el("tr", {},
    el("td", { class: "soft" }, clock(note.at)),
    el("td", { class: "soft wide" }, note.round ? `round ${note.round}` : ""),
    el("td", {}, note.kind),
    el("td", { class: "text" }, note.device ? el("strong", {}, note.device) : "", note.device ? ": " : "", note.text))))));
}
