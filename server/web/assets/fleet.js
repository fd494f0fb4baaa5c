// The devices of the run: how many of each tier, and each with when it was last heard of and how fast it is.

import { el, replace } from "./dom.js";
import { DASH, ago, bytes, count, macs, percent, seconds } from "./format.js";
import { PagedTable, Choice, search } from "./table.js";

const rate = (value) => (value ? `${bytes(value)}/s` : DASH);
const or = (value, text) => (value ? text(value) : DASH);

export class FleetPage {
  constructor() {
    this.tiers = el("div");
    this.table = new PagedTable({
      caption: "Devices",
      empty: "No device has joined yet.",
      columns: [
        { title: "Device", sort: "name", cls: "name", cell: (row) => row.name, hint: (row) => (row.version ? `${row.name}, agent ${row.version}` : row.name) },
        { title: "Tier", sort: "tier", wide: true, cls: "tier", cell: (row) => row.tier || DASH },
        { title: "State", sort: "state", cell: (row) => el("span", { class: `badge ${row.barred ? "out" : row.state}`, title: row.barred || null }, row.barred ? "kept out" : row.state) },
        { title: "Last seen", num: true, cell: (row) => ago(row.idle) },
        { title: "Speed", num: true, wide: true, cell: (row) => or(row.macs_per_second, (value) => `${macs(value)}/s`) },
        { title: "Memory", num: true, wide: true, cell: (row) => or(row.memory, bytes) },
        { title: "Down / up", num: true, wide: true, cell: (row) => (row.down || row.up ? `${rate(row.down)} / ${rate(row.up)}` : DASH) },
        { title: "Examples", sort: "examples", num: true, wide: true, cell: (row) => or(row.examples, count) },
        { title: "Sub-model", wide: true, cls: "name", cell: (row) => row.spec || DASH },
        { title: "Updates", sort: "accepted", num: true, wide: true, cell: (row) => count(row.accepted) },
        { title: "Refused", sort: "quarantined", num: true, wide: true, cell: (row) => count(row.quarantined) },
        { title: "Trained in", sort: "seconds", num: true, wide: true, cell: (row) => or(row.seconds, seconds) },
        { title: "Moved", num: true, wide: true, cell: (row) => or(row.moved[0] + row.moved[1], bytes) },
      ],
    });
    this.tier = new Choice("Tier", "All tiers", (value) => this.table.narrow("tier", value));
    this.state = new Choice("State", "All states", (value) => this.table.narrow("state", value));
    this.state.offer(["online", "gone"]);
    this.nodes = [
      el("section", { class: "card", "aria-label": "Tiers" }, el("header", {}, el("h2", {}, "Tiers")), this.tiers),
      el("section", { class: "card", "aria-label": "Devices" },
        el("header", {}, el("h2", {}, "Devices"), el("span", { class: "spacer" }), this.tier.node, this.state.node, search(this.table, "Search device")),
        this.table.node),
    ];
  }

  update(state) {
    const { run } = state;
    const fleet = run.fleet || [];
    const parts = Object.fromEntries((run.tiers || []).map((tier) => [tier.tier, tier]));
    replace(this.tiers, fleet.length ? el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ["Tier", "Online", "Known", "In the round", "Sub-models"].map((head, at) =>
        el("th", { scope: "col", class: at > 0 && at < 4 ? (at === 3 ? "num wide" : "num") : null }, head)))),
      el("tbody", {}, fleet.map((tier) => row(tier, parts[tier.tier]))))) : el("p", { class: "empty" }, "No device has joined yet."));
    this.tier.offer(fleet.map((tier) => tier.tier).filter(Boolean));
    this.table.load(`/api/runs/${encodeURIComponent(run.id)}/devices`);
  }
}

function row(tier, round) {
  const inside = round ? Object.values(round.parts).reduce((one, other) => one + other, 0) : 0;
  const labels = round ? Object.entries(round.labels).map(([label, number]) => `${label} × ${count(number)}`).join(", ") : DASH;
  return el("tr", {},
    el("td", { class: "name" }, tier.tier || "no tier"),
    el("td", { class: "num" }, count(tier.online)),
    el("td", { class: "num" }, count(tier.known)),
    el("td", { class: "num wide", title: percent(inside, tier.online) }, count(inside)),
    el("td", { class: "soft" }, labels));
}
