// The family of sub-models: the layers of the global network, and how much of each a sub-model holds.

import { el, svg, replace } from "./dom.js";
import { bytes, count, macs, percent, short } from "./format.js";
import { get } from "./api.js";

const HEIGHT = 64;

export class FamilyPage {
  constructor() {
    this.body = el("div");
    this.sub = el("span", { class: "soft" });
    this.shown = "";
    this.nodes = [
      el("section", { class: "card", "aria-label": "Sub-models" },
        el("header", {}, el("h2", {}, "Sub-models"), this.sub), this.body),
    ];
  }

  async update(state) {
    const { run } = state;
    const key = JSON.stringify([run.id, run.began !== null, (run.tiers || []).map((tier) => [tier.tier, tier.labels])]);
    if (key === this.shown) return;
    this.shown = key;
    try {
      const { family } = await get(`/api/runs/${encodeURIComponent(run.id)}/family`);
      if (!family) throw new Error("The sub-models are not known here: the run has not begun, or was over before anybody asked.");
      const by = {};
      for (const tier of run.tiers || []) for (const [label, number] of Object.entries(tier.labels)) (by[label] ||= []).push(`${tier.tier || "no tier"} × ${count(number)}`);
      this.sub.textContent = `${count(family.layers.length)} layers with weights, ${short(family.parameters)} parameters; a bar is the share of a layer's outputs`;
      replace(this.body, picture(family, by));
    } catch (error) {
      this.shown = "";
      replace(this.body, el("p", { class: "empty" }, error.status === 404 ? "The run has not begun." : error.message));
    }
  }
}

function picture(family, by) {
  const width = family.layers.length > 16 ? 30 : family.layers.length > 8 ? 44 : 72;
  const most = Math.max(...family.layers.map((layer) => layer.outputs), 1);
  // The more outputs a layer has, the taller it is; by the logarithm, since layers differ by orders of magnitude.
  const tall = (layer) => 12 + (HEIGHT - 12) * (Math.log2(layer.outputs + 1) / Math.log2(most + 1));
  const head = el("tr", {}, el("th", { scope: "col" }, "Layer"), family.layers.map((layer) =>
    el("th", { scope: "col", class: "layer", title: `${layer.name}: ${layer.kind}, ${count(layer.parameters)} parameters` }, layer.name, el("small", {}, layer.kind))));
  const whole = el("tr", { class: "global" },
    el("th", { scope: "row" }, "global network", el("small", {}, `${short(family.parameters)} parameters`)),
    family.layers.map((layer) => cell(layer, width, tall(layer), layer.outputs, layer.parameters)));
  const rows = [...family.sizes].reverse().map((size) => el("tr", {},
    el("th", { scope: "row" }, size.label,
      el("small", {}, `${short(size.parameters)} parameters, ${macs(size.macs)}`),
      el("small", {}, `${bytes(size.payload)} to send, ${bytes(size.memory)} to train`),
      el("small", {}, by[size.label] ? `held by ${by[size.label].join(", ")}` : "held by nobody now"),
      size.own ? el("small", {}, `${short(size.own)} parameters of its own`) : null),
    family.layers.map((layer, at) => cell(layer, width, tall(layer), size.outputs[at], size.held[at]))));
  const more = family.more ? el("p", { class: "empty" }, `${count(family.more)} more sub-models`) : null;
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Layers of each sub-model" },
    el("table", { class: "family" }, el("thead", {}, head), el("tbody", {}, whole, rows)), more);
}

function cell(layer, width, height, outputs, parameters) {
  const share = layer.outputs ? Math.min(outputs / layer.outputs, 1) : 0;
  const said = `${layer.name}: ${outputs} of ${layer.outputs} outputs, ${percent(parameters, layer.parameters)} of the parameters`;
  const top = HEIGHT - height;
  return el("td", { title: said },
    svg("svg", { width, height: HEIGHT + 2, role: "img", "aria-label": said },
      svg("rect", { class: "whole", x: 0.5, y: top + 0.5, width: width - 1, height: height - 1, rx: 2 }),
      share ? svg("rect", { class: "held", x: 0.5, y: top + height * (1 - share) + 0.5, width: width - 1, height: Math.max(height * share - 1, 1), rx: 2 }) : null),
    el("small", {}, outputs ? `${count(outputs)}` : "none"));
}
