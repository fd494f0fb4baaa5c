// Calls to the server, and its stream of events.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== undefined);
  const search = new URLSearchParams(given).toString();
  return answered(await fetch(search ? `${path}?${search}` : path));
}

export async function post(path, body = {}) {
  const headers = { "content-type": "application/json", "x-diastole": "1" };
  return answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answered(response) {
  const document = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, document.error || `the server answered ${response.status}`);
  return document;
}

// Follows a run; `told` is called with each event, `standing` with whether the connection stands.
export function follow(run, told, standing) {
  const source = new EventSource(`/api/stream?run=${encodeURIComponent(run)}`);
  let first = true;
  source.onopen = () => {
    // After a break the server tells everything anew.
    first = true;
    standing(true);
  };
  source.onmessage = (event) => {
    told(JSON.parse(event.data), first);
    first = false;
  };
  source.onerror = () => standing(false, source.readyState === EventSource.CLOSED);
  return () => source.close();
}
