// A table whose rows the server has: it is asked for one page, and again when something has changed.

import { el, replace, setText } from "./dom.js";
import { get } from "./api.js";
import { count } from "./format.js";

const PAGE = 50;

export class PagedTable {
  // Columns are {title, cell(row) -> node or text, sort, num, wide, cls, hint(row) -> text}.
  constructor({ columns, caption, empty, filters = null, sort = "name" }) {
    this.columns = columns;
    this.empty = empty;
    this.query = { offset: 0, limit: PAGE, sort };
    this.path = null;
    this.asked = 0;
    this.body = el("tbody");
    this.heads = columns.map((column) => this.head(column));
    this.table = el("table", {}, el("caption", { class: "visually-hidden" }, caption), el("thead", {}, el("tr", {}, this.heads)), this.body);
    this.none = el("p", { class: "empty", hidden: true }, empty);
    this.where = el("span", { class: "soft num" });
    this.back = el("button", { type: "button", onclick: () => this.move(-PAGE) }, "Back");
    this.on = el("button", { type: "button", onclick: () => this.move(PAGE) }, "Next");
    this.pager = el("div", { class: "pager" }, this.where, el("span", { class: "spacer" }), this.back, this.on);
    this.node = el("div", {}, el("div", { class: "scroll" }, this.table), this.none, this.pager);
    this.filters = filters;
    this.mark();
  }

  head(column) {
    const cls = [column.num ? "num" : "", column.wide ? "wide" : ""].join(" ").trim();
    if (!column.sort) return el("th", { scope: "col", class: cls || null }, column.title);
    return el("th", { scope: "col", class: cls || null }, el("button", { type: "button", onclick: () => this.order(column.sort) }, column.title));
  }

  order(key) {
    this.query.sort = this.query.sort === key ? `-${key}` : key;
    this.query.offset = 0;
    this.mark();
    this.load();
  }

  mark() {
    const { sort } = this.query;
    this.heads.forEach((head, at) => {
      const key = this.columns[at].sort;
      const way = sort === key ? "ascending" : sort === `-${key}` ? "descending" : null;
      if (way && key) head.setAttribute("aria-sort", way);
      else head.removeAttribute("aria-sort");
    });
  }

  narrow(key, value) {
    this.query[key] = value;
    this.query.offset = 0;
    this.load();
  }

  move(by) {
    this.query.offset = Math.max(0, this.query.offset + by);
    this.load();
  }

  async load(path = this.path) {
    if (path !== this.path) this.query.offset = 0;
    this.path = path;
    this.asked += 1;
    const asked = this.asked;
    try {
      const page = await get(path, this.query);
      if (asked !== this.asked) return;
      if (page.offset >= page.total && page.offset > 0) {
        this.query.offset = Math.floor(Math.max(0, page.total - 1) / PAGE) * PAGE;
        await this.load();
        return;
      }
      this.show(page);
    } catch (error) {
      if (asked === this.asked && error.status !== 404) setText(this.where, error.message);
      if (error.status === 404) this.show({ total: 0, offset: 0, rows: [] });
    }
  }

  show(page) {
    replace(this.body, page.rows.map((row) => this.row(row)));
    this.table.hidden = page.total === 0;
    this.none.hidden = page.total > 0;
    const narrowed = this.query.text || this.query.tier || this.query.state;
    setText(this.none, narrowed ? "No device is like that." : this.empty);
    this.pager.hidden = page.total <= PAGE;
    const last = page.offset + page.rows.length;
    setText(this.where, page.total ? `${count(page.offset + 1)}–${count(last)} of ${count(page.total)}` : "");
    this.back.disabled = page.offset === 0;
    this.on.disabled = last >= page.total;
  }

  row(row) {
    return el("tr", {}, this.columns.map((column) => {
      const cls = [column.num ? "num" : "", column.wide ? "wide" : "", column.cls || ""].join(" ").trim();
      const cell = column.cell(row);
      return el("td", { class: cls || null, title: column.hint ? column.hint(row) : column.cls === "name" || column.cls === "tier" ? cell : null }, cell);
    }));
  }
}

export function search(table, label) {
  let timer = 0;
  return el("input", {
    type: "search", placeholder: label, "aria-label": label, maxlength: 64, spellcheck: "false",
    oninput: (event) => {
      clearTimeout(timer);
      timer = setTimeout(() => table.narrow("text", event.target.value.trim()), 200);
    },
  });
}

// A choice of values, whose list may grow while it is open.
export class Choice {
  constructor(label, all, chosen) {
    this.all = all;
    this.node = el("select", { "aria-label": label, onchange: (event) => chosen(event.target.value) });
    this.known = null;
    this.offer([]);
  }

  offer(values) {
    const now = JSON.stringify(values);
    if (now === this.known) return;
    this.known = now;
    const chosen = this.node.value;
    replace(this.node, el("option", { value: "" }, this.all), values.map((value) => el("option", { value }, value)));
    this.node.value = values.includes(chosen) ? chosen : "";
  }
}
