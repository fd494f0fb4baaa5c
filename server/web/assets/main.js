// The page: who looks, which run and view are shown, and what the stream of events tells.

import { byId, el, replace, setText } from "./dom.js";
import { DASH, bytes, count, score, seconds, digits } from "./format.js";
import { follow, get, post } from "./api.js";
import { RoundPage } from "./round.js";
import { LearningPage } from "./learning.js";
import { FleetPage } from "./fleet.js";
import { FamilyPage } from "./family.js";
import { QuarantinePage } from "./quarantine.js";
import { RunsPage } from "./runs.js";

const VIEWS = {
  round: ["Round", () => new RoundPage()],
  learning: ["Learning", () => new LearningPage()],
  fleet: ["Fleet", () => new FleetPage()],
  family: ["Sub-models", () => new FamilyPage()],
  quarantine: ["Quarantine", () => new QuarantinePage()],
  runs: ["Runs and storage", () => new RunsPage(choose)],
};
const VERBS = {
  pause: ["Pause", "No new round begins; the open one closes."],
  resume: ["Resume", "Rounds go on."],
  stop: ["Stop", "The run ends after the open round. It can go on later from its checkpoint."],
  "stop-now": ["Stop now", "The open round is abandoned, and the run ends. It can go on later from its checkpoint."],
};
const DESTRUCTIVE = new Set(["stop", "stop-now"]);
const MOST_POINTS = 8000;
const MOST_LINES = 1000;
// Lists are asked for again at most this often, in milliseconds.
const REFRESH = 500;

const state = { who: null, runs: [], run: { id: "" }, points: [], notes: [], refused: [] };
let chosen = "";
let stop = null;
let shown = null;
let page = null;
let due = 0;

// --- logging in

async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", "#/round");
    await post("/api/login", { token }).catch(() => null);
  }
  state.who = await get("/api/session");
  if (!state.who.role) {
    ask();
    return;
  }
  byId("login").hidden = true;
  byId("app").hidden = false;
  listen();
  route();
}

function ask() {
  stop?.();
  byId("app").hidden = true;
  byId("login").hidden = false;
  byId("token").focus();
}

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("token");
  try {
    await post("/api/login", { token: field.value });
    setText(byId("login-error"), "");
    field.value = "";
    await begin();
  } catch (error) {
    setText(byId("login-error"), `That did not work: ${error.message}.`);
    field.select();
  }
});

byId("logout").addEventListener("click", async () => {
  await post("/api/logout").catch(() => null);
  ask();
});

// --- events

function listen() {
  stop?.();
  stop = follow(chosen, told, standing);
}

function told(event, first) {
  if (event.run && event.run.id !== state.run.id) {
    // The selection of a run follows the server's only if nobody has chosen.
    first = true;
  }
  if (first) Object.assign(state, { points: [], notes: [], refused: [] });
  // Of a run that was rolled back, later rounds are none any more, and those that follow are played once more.
  const kept = Math.min(event.run?.closed ?? Infinity, (event.points?.[0].round ?? Infinity) - 1);
  if (kept < state.points.at(-1)?.round) state.points = state.points.filter((point) => point.round <= kept);
  if (event.runs) state.runs = event.runs;
  if (event.run) announce(event.run);
  if (event.run) state.run = event.run;
  for (const [name, most] of [["points", MOST_POINTS], ["notes", MOST_LINES], ["refused", MOST_LINES]]) {
    if (event[name]) state[name].push(...event[name]);
    if (state[name].length > most) state[name].splice(0, state[name].length - most);
  }
  soon();
}

async function standing(stands, ended) {
  setText(byId("connection"), stands ? "" : "not connected");
  if (ended) {
    // The server has refused: the session is over, or too many watch.
    const known = await get("/api/session").catch(() => state.who);
    if (known.role) setTimeout(listen, 3000);
    else ask();
  }
}

function announce(run) {
  const before = state.run;
  if (before.id !== run.id) return;
  if (!before.over && run.over) setText(byId("announce"), run.ending ? `The run is over: ${run.ending}` : "The run is over.");
}

// Shows what has changed, a few times a second at most.
function soon() {
  if (due) return;
  due = setTimeout(() => {
    due = 0;
    show();
  }, state.points.length || shown === null ? REFRESH / 2 : 0);
}

// --- what is shown

function show() {
  const listed = state.runs.find((run) => run.run_id === state.run.id);
  const run = { rounds: listed?.rounds || 0, ...state.run };
  if (!run.rounds) run.rounds = listed?.rounds || 0;
  header(listed);
  figures(run);
  if (run.id) page?.update({ ...state, run });
}

function header(listed) {
  const select = byId("run");
  const options = state.runs.map((run) => [run.run_id, run.title && run.title !== run.run_id ? `${run.title} (${run.run_id})` : run.run_id]);
  const now = JSON.stringify(options);
  if (select.dataset.now !== now) {
    select.dataset.now = now;
    replace(select, options.map(([value, text]) => el("option", { value }, text)));
  }
  select.value = state.run.id;
  select.disabled = state.runs.length < 2;
  const badge = byId("state");
  setText(badge, listed?.state || (state.run.over ? "over" : "–"));
  badge.className = `badge ${listed?.state || ""}`;
  setText(byId("method"), listed?.method || state.run.method || "");
  const verbs = state.who.role === "operator" ? listed?.verbs || [] : [];
  const buttons = byId("verbs");
  if (buttons.dataset.now !== verbs.join()) {
    buttons.dataset.now = verbs.join();
    replace(buttons, verbs.map((verb) => el("button", { type: "button", class: DESTRUCTIVE.has(verb) ? "danger" : null, onclick: () => act(verb) }, (VERBS[verb] || [verb])[0])));
  }
  document.title = `${state.run.round ? `${state.run.round}/${state.run.rounds} ` : ""}${listed?.title || "diastole"}`;
}

function figures(run) {
  const totals = run.totals || {};
  const scored = state.points.filter((point) => point.scores);
  const last = scored.at(-1)?.scores || {};
  const metric = run.metric || "accuracy";
  const fleet = run.fleet || [];
  const online = fleet.reduce((sum, tier) => sum + tier.online, 0);
  const known = (totals.folded || 0) + (totals.quarantined || 0);
  const rows = [
    ["Round", count(run.round || 0), `of ${count(run.rounds)}`],
    [run.metric_title || metric, score(metric, last[metric]), scored.length ? `round ${scored.at(-1).round}` : ""],
    ["Loss", digits(last.loss), ""],
    ["Devices online", count(online), fleet.length ? `of ${count(fleet.reduce((sum, tier) => sum + tier.known, 0))}` : ""],
    ["Updates folded", count(totals.folded || 0), known ? `${count(totals.quarantined || 0)} refused` : ""],
    ["Payload bytes", bytes((totals.bytes_down || 0) + (totals.bytes_up || 0)), ""],
    ["Time in rounds", seconds(totals.seconds || 0), ""],
  ];
  const node = byId("figures");
  if (node.children.length !== rows.length) {
    replace(node, rows.map(() => el("div", {}, el("dt"), el("dd", {}, el("span"), el("small")))));
  }
  rows.forEach(([name, value, more], at) => {
    const box = node.children[at];
    setText(box.children[0], name.charAt(0).toUpperCase() + name.slice(1));
    setText(box.children[1].children[0], value === undefined ? DASH : value);
    setText(box.children[1].children[1], more);
    box.title = `${name}: ${value} ${more}`;
  });
}

// --- verbs

function act(verb) {
  const [title, text] = VERBS[verb] || [verb, ""];
  const run = state.run.id;
  const dialog = byId("ask");
  setText(byId("ask-title"), `${title} run ${run}?`);
  setText(byId("ask-text"), text);
  setText(byId("ask-yes"), title);
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    try {
      await post(`/api/runs/${encodeURIComponent(run)}/${encodeURIComponent(verb)}`);
      setText(byId("announce"), `${title}: done`);
    } catch (error) {
      setText(byId("connection"), error.message);
    }
  };
  dialog.returnValue = "no";
  dialog.showModal();
}

// --- runs, views and themes

function choose(run) {
  chosen = run;
  Object.assign(state, { run: { id: run }, points: [], notes: [], refused: [] });
  listen();
  location.hash = "#/round";
}

byId("run").addEventListener("change", (event) => choose(event.target.value));

function route() {
  if (!state.who) return;
  const asked = location.hash.replace(/^#\//, "");
  const name = asked in VIEWS ? asked : "round";
  if (name === shown) return;
  shown = name;
  for (const link of byId("tabs").querySelectorAll("a")) {
    const here = link.getAttribute("href") === `#/${name}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    // Not scrollIntoView, which moves where the Tab key goes on from.
    if (here) link.closest("nav").scrollLeft = link.offsetLeft - 60;
  }
  page = VIEWS[name][1]();
  replace(byId("page"), page.nodes);
  show();
}

replace(byId("tabs"), Object.entries(VIEWS).map(([key, [title]]) => el("li", {}, el("a", { href: `#/${key}` }, title))));
window.addEventListener("hashchange", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("page").focus();
});

// Last seen goes on even if nothing happens.
setInterval(() => {
  if (shown === "fleet" || shown === "runs") show();
}, 5000);

const THEMES = ["system", "light", "dark"];
function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  localStorage.setItem("theme", name);
  const button = byId("theme");
  const text = { system: "auto", light: "light", dark: "dark" }[name];
  replace(button, el("span", { class: "wide" }, "Theme: "), el("span", { class: "narrow", "aria-hidden": "true" }, "◐ "), text);
  button.setAttribute("aria-label", `Theme: ${text}`);
  button.onclick = () => theme(THEMES[(THEMES.indexOf(name) + 1) % THEMES.length]);
}
theme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "system");
begin();
