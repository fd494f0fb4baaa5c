// The updates that were refused, and what else an operator should look at.

import { el, replace, setText } from "./dom.js";
import { clock, count, percent } from "./format.js";
import { noteTable } from "./round.js";

const MOST = 100;

export class QuarantinePage {
  constructor() {
    this.sub = el("span", { class: "soft" });
    this.refused = el("div");
    this.notes = el("div");
    this.drawn = "";
    this.nodes = [
      el("section", { class: "card", "aria-label": "Quarantine" }, el("header", {}, el("h2", {}, "Quarantined updates"), this.sub), this.refused),
      el("section", { class: "card", "aria-label": "Notes" }, el("header", {}, el("h2", {}, "Lost, declined, abandoned, warned")), this.notes),
    ];
  }

  update(state) {
    const { run, refused, notes } = state;
    const totals = run.totals || {};
    const known = (totals.folded || 0) + (totals.quarantined || 0);
    const cut = refused.length > MOST ? `; the latest ${MOST} are shown` : "";
    setText(this.sub, known ? `${count(totals.quarantined || 0)} of ${count(known)} updates, ${percent(totals.quarantined || 0, known)}${cut}` : "");
    const key = JSON.stringify([run.id, refused.at(-1)?.number, notes.at(-1)?.number]);
    if (key === this.drawn) return;
    this.drawn = key;
    replace(this.refused, refused.length ? table(refused.slice(-MOST).reverse()) : el("p", { class: "empty" }, "No update has been quarantined."));
    replace(this.notes, notes.length ? noteTable(notes.slice(-MOST).reverse()) : el("p", { class: "empty" }, "Nothing to look at."));
  }
}

function table(lines) {
  return el("div", { class: "scroll" }, el("table", { class: "log" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), el("th", { scope: "col", class: "num wide" }, "Round"), el("th", { scope: "col" }, "Device"), el("th", { scope: "col" }, "Why"))),
    el("tbody", {}, lines.map((line) => el("tr", {},
      el("td", { class: "soft" }, clock(line.at)), el("td", { class: "num wide" }, count(line.round)),
      el("td", { class: "name", title: line.device }, line.device), el("td", { class: "text" }, line.text))))));
}
