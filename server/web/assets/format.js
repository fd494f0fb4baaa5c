// Numbers as people read them. An unknown number is a dash.

const SHARES = /^(accuracy|f1|iou|top-\d+)$/;
const LINE = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
export const DASH = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

export function count(value) {
  return known(value) ? Math.round(value).toLocaleString("en-US") : DASH;
}

function scaled(value, steps, base, digits) {
  let at = 0;
  while (Math.abs(value) >= base && at < steps.length - 1) {
    value /= base;
    at += 1;
  }
  const places = at === 0 ? 0 : Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : digits;
  return `${value.toFixed(places)} ${steps[at]}`;
}

export function bytes(value) {
  return known(value) ? scaled(value, ["B", "kB", "MB", "GB", "TB", "PB"], 1000, 2) : DASH;
}

export function macs(value) {
  return known(value) ? scaled(value, ["MAC", "kMAC", "MMAC", "GMAC", "TMAC"], 1000, 2) : DASH;
}

export function short(value) {
  if (!known(value)) return DASH;
  if (Math.abs(value) < 1000) return `${Math.round(value)}`;
  return scaled(value, ["", "k", "M", "G", "T"], 1000, 1).replace(" ", "");
}

export function seconds(value) {
  if (!known(value)) return DASH;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`.replace(" 0 s", "");
  if (value < 172800) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${(value / 86400).toFixed(1)} d`;
}

export function score(metric, value) {
  if (!known(value)) return DASH;
  return SHARES.test(metric) ? `${(100 * value).toFixed(1)} %` : digits(value);
}

export function digits(value) {
  if (!known(value)) return DASH;
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 100000) ? value.toExponential(2) : value.toFixed(size < 10 ? 3 : 1);
}

export function percent(part, whole) {
  if (!(whole > 0)) return DASH;
  const share = (100 * part) / whole;
  return `${share > 0 && share < 10 ? share.toFixed(1) : Math.round(share)} %`;
}

export function ago(value) {
  if (!known(value)) return DASH;
  return value < 2 ? "now" : `${seconds(value)} ago`;
}

// A time of day; with the date if it is not today's.
export function clock(at) {
  const date = new Date(at * 1000);
  const today = date.toDateString() === new Date().toDateString();
  return today ? LINE.format(date) : `${date.toISOString().slice(0, 10)} ${LINE.format(date)}`;
}
