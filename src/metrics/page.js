"use strict";
// What clients are called, and what they did, is text, never markup: nothing here is parsed as HTML.

const EVERY = 2000, PATIENCE = 5000, SPAN = 300000;
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** The counters at times, the oldest first, over the server's processes. */
let history = [];
/** Times at which another process took over. */
let changes = [];
let last = null;
let answered = Date.now();
/** When those that are shown ended, and how: as it was first told. */
let ended = new Map();
const shown = new Map();

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined).map((child) => child instanceof Node ? child : String(child)));
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Has `id` show what `make` makes of `data`; what has not changed is left alone, so that it can be selected and scrolled. */
function show(id, data, make) {
  const key = JSON.stringify(data);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  const old = $(id).querySelector(".scroll");
  const [top, left, focused] = old ? [old.scrollTop, old.scrollLeft, document.activeElement === old] : [0, 0, false];
  $(id).replaceChildren(...[make(data)].flat());
  const scroll = $(id).querySelector(".scroll");
  if (!scroll) return;
  scroll.scrollTop = top;
  scroll.scrollLeft = left;
  if (focused) scroll.focus();
}

function count(value) {
  if (value < 1e4) return value.toLocaleString("en");
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) return (value / size).toLocaleString("en", { maximumSignificantDigits: 3 }) + unit;
  }
}

function rate(value) {
  return value >= 100 ? count(Math.round(value)) : value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

function bytes(value) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (value >= size) return (value / size).toLocaleString("en", { maximumSignificantDigits: 3 }) + " " + unit;
  }
  return Math.round(value) + " B";
}

function time(seconds) {
  if (seconds < 0.001) return Math.round(seconds * 1e6) + " µs";
  if (seconds < 1) return Number((seconds * 1e3).toPrecision(3)) + " ms";
  if (seconds < 60) return Number(seconds.toFixed(1)) + " s";
  const whole = Math.floor(seconds);
  const two = (big, unit, small, part) => big + " " + unit + (small ? " " + small + " " + part : "");
  if (whole < 3600) return two(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86400) return two(Math.floor(whole / 3600), "h", Math.floor(whole % 3600 / 60), "min");
  return two(Math.floor(whole / 86400), "d", Math.floor(whole % 86400 / 3600), "h");
}

function clock(at) {
  const when = new Date(at);
  const day = when.toDateString() === new Date().toDateString() ? "" : when.toLocaleDateString("sv") + " ";
  return day + when.toLocaleTimeString("sv");
}

/** How bad it is that connections ended so. */
function weight(reason) {
  if (["peer-closed", "drain", "handed-off", "max-age", "killed", "service"].includes(reason)) return "";
  if (["peer-reset", "read-timeout", "half-close-timeout", "limit", "denied"].includes(reason)) return "warn";
  return "bad";
}

function evidence(end) {
  const probed = end.probes > 0 && end.probes + " probes unanswered";
  const repeated = end.retransmits > 0 && end.retransmits + " retransmits unacknowledged";
  const silent = end.silent_for >= 1 && "silent for " + time(end.silent_for);
  return [
    end.limit && "limit: " + end.limit, end.header && "header: " + end.header, end.errno, probed, repeated, silent,
    end.late && end.late + " came late", end.upstream && "upstream " + end.upstream,
  ].filter(Boolean).join(", ");
}

/** A table that scrolls by itself; a column is its title, how wide of kind, and what stands in it. */
function table(label, columns, rows) {
  const cell = (name, kind, content, more) => element(name, { ...(kind && { class: kind }), ...more }, content);
  const head = columns.map(([title, kind]) => cell("th", kind, title, { scope: "col" }));
  const body = rows.map((row) => element("tr", {}, ...columns.map(([, kind, of]) => cell("td", kind, of(row)))));
  const whole = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, whole);
}

const none = (words) => element("p", { class: "none" }, words);

/** What `of` made of the counters a second, between one time and the next. */
function rates(of) {
  return history.slice(1).map((sample, at) => {
    const before = history[at];
    return [sample.at, Math.max(0, of(sample) - of(before)) * 1000 / Math.max(1, sample.at - before.at)];
  });
}

function line(points, label) {
  const now = Date.now(), most = Math.max(1, ...points.map(([, value]) => value));
  const x = (at) => Math.max(0, 300 - (now - at) * 300 / SPAN).toFixed(1);
  const y = (value) => (38 - value * 36 / most).toFixed(1);
  const svg = drawn("svg", { viewBox: "0 0 300 40", preserveAspectRatio: "none", role: "img", "aria-label": label });
  for (const at of changes) svg.append(drawn("line", { class: "restart", x1: x(at), x2: x(at), y1: 0, y2: 40 }));
  if (points.length > 1) {
    const path = points.map(([at, value]) => x(at) + " " + y(value)).join(" L");
    svg.append(drawn("path", { class: "area", d: "M" + x(points[0][0]) + " 40 L" + path + " L" + x(points.at(-1)[0]) + " 40 Z" }));
    svg.append(drawn("path", { class: "line", d: "M" + path }));
  }
  return svg;
}

function tile(title, value, unit, points, words) {
  const most = points.length ? Math.max(...points.map(([, one]) => one)) : 0;
  const label = title + " over the last five minutes: at most " + words(most) + " " + unit;
  return element("div", { class: "tile" }, element("h3", {}, title), element("p", {}, value, " ", element("small", {}, unit)), line(points, label),
    element("div", { class: "under" }, "at most " + words(most)));
}

function level(title, value, of, share) {
  const meter = element("meter", { min: 0, max: 1, value: share, class: share > 0.9 ? "bad" : share > 0.75 ? "warn" : "", "aria-label": title });
  return [element("h3", {}, title), element("p", { class: "level" }, value, " ", element("small", {}, of)), meter];
}

function tiles(status) {
  const open = history.map((sample) => [sample.at, sample.open]);
  const of = (title, unit, key, words) => {
    const points = rates((sample) => sample[key]);
    return tile(title, words(points.length ? points.at(-1)[1] : 0), unit, points, words);
  };
  const made = [
    tile("Connections", count(status.open), "open", open, count),
    of("Accepted", "/s", "accepted", rate), of("Ended", "/s", "closed", rate),
    of("Read from clients", "/s", "read", bytes), of("Written to clients", "/s", "written", bytes),
    element("div", { class: "tile" },
      ...level("Bytes that wait", bytes(status.memory.held), "of " + bytes(status.memory.limit), status.memory.held / Math.max(1, status.memory.limit)),
      ...(status.descriptors ? level("Descriptors", count(status.descriptors.used), "of " + count(status.descriptors.limit), status.descriptors.used / Math.max(1, status.descriptors.limit)) : [])),
  ];
  if (status.children !== null) made.push(element("div", { class: "tile" }, element("h3", {}, "Processes of exec"), element("p", {}, count(status.children))));
  $("tiles").replaceChildren(...made);
}

function reasons(closed) {
  if (!closed.length) return none("No connection has ended yet.");
  const sum = closed.reduce((all, [, ends]) => all + ends, 0);
  const sorted = closed.slice().sort((one, other) => other[1] - one[1]);
  return element("dl", {}, ...sorted.flatMap(([reason, ends]) => [
    element("dt", { class: weight(reason) }, reason),
    element("dd", {}, element("meter", { min: 0, max: sum, value: ends, class: weight(reason), "aria-hidden": "true" })),
    element("dd", { class: "number" }, count(ends)),
  ]));
}

function endings() {
  const wanted = $("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...ended.values()].filter((end) => {
    const text = [end.reason, end.peer, end.listener, evidence(end), "#" + end.id].join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  show("ended", rows, () => {
    if (!ended.size) return none("None has ended yet.");
    if (!rows.length) return none("None of these " + ended.size + " has that.");
    return table("connections that ended last", [
      ["ended", "", (end) => clock(end.at)],
      ["reason", "", (end) => element("span", { class: weight(end.reason) }, end.reason ?? "unknown")],
      ["evidence", "name", evidence],
      ["peer", "name", (end) => end.peer],
      ["listener", "name", (end) => end.listener],
      ["age", "number", (end) => time(end.age)],
      ["read", "number", (end) => bytes(end.read)],
      ["written", "number", (end) => bytes(end.written)],
      ["id", "number", (end) => end.id],
    ], rows);
  });
}

function remember(status, now) {
  const sample = ({ open, accepted, read, written }, closed, at) => ({ at, open, accepted, closed, read, written });
  const sum = status.closed.reduce((all, [, ends]) => all + ends, 0);
  const current = sample(status, sum, now);
  // Another server, which has counted from the start.
  if (last && status.counted_for < last.counted_for) {
    history = [];
    changes = [];
    ended = new Map();
  } else if (last && status.pid !== last.pid) {
    changes.push(now);
  }
  if (!history.length) history = status.samples.map((one) => sample(one, one.closed, now - one.ago * 1000));
  history.push(current);
  history = history.filter(({ at }) => at > now - SPAN);
  changes = changes.filter((at) => at > now - SPAN);
  const known = ended;
  ended = new Map(status.ended.map((end) => [end.id, known.get(end.id) ?? { ...end, at: now - end.ago * 1000 }]));
  last = status;
}

function update(status) {
  const now = Date.now();
  answered = now;
  remember(status, now);
  const [state, kind] = status.draining ? ["draining", "warn"] : status.accept_paused ? ["accept paused", "bad"] : ["serving", "good"];
  $("state").textContent = state;
  $("state").className = "state " + kind;
  document.title = status.open + " open, standfast" + (state === "serving" ? "" : ", " + state);
  const counted = time(status.counted_for), here = time(status.uptime);
  $("about").textContent = "version " + status.version + ", pid " + status.pid + ", up " + counted
    + (status.takeovers.completed ? " (this process " + here + ")" : "") + ", " + status.workers + (status.workers === 1 ? " worker" : " workers");
  const failed = status.accept_errors.map(([errno, times]) => count(times) + " " + errno).join(", ");
  $("trouble").textContent = status.accept_paused ? "Nobody new is accepted: there are no descriptors or no memory for one more." + (failed && " Failed accepts: " + failed + ".") : "";
  tiles(status);
  show("listeners", status.listeners, (listeners) => table("listeners", [
    ["address", "name", (one) => one.address],
    ["service", "", (one) => one.service],
    ["open", "number", (one) => count(one.open)],
    ["accepted", "number", (one) => count(one.accepted)],
    ["ended", "number", (one) => count(one.closed.reduce((all, [, ends]) => all + ends, 0))],
  ], listeners));
  show("reasons", status.closed, reasons);
  $("upstreams").parentElement.hidden = !status.upstreams.length;
  show("upstreams", status.upstreams.map(({ address, up, down_for }) => ({ address, up, down: up ? null : Math.round(down_for ?? 0) })), (upstreams) => table("upstreams", [
    ["address", "name", (one) => one.address],
    ["state", "", (one) => one.up ? element("span", { class: "good" }, "up") : element("span", { class: "bad" }, "down for " + time(one.down))],
  ], upstreams));
  show("takeovers", status.takeovers, (all) => {
    const sum = element("p", { class: "none" }, count(all.completed) + " completed, " + count(all.refused) + " refused, " + count(all.failed) + " failed");
    return all.recent.length ? [table("takeovers", [
      ["when", "", (one) => clock(one.at * 1000)],
      ["freeze", "number", (one) => time(one.frozen)],
      ["connections", "number", (one) => count(one.connections)],
      ["stayed", "number", (one) => count(one.staying)],
      ["version", "", (one) => one.version],
      ["pid", "number", (one) => one.pid],
    ], all.recent.slice().reverse()), sum] : sum;
  });
  endings();
}

async function ask() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
      if (!answer.ok) throw new Error((await answer.text()).trim());
      update(await answer.json());
    } catch (error) {
      const since = Math.round((Date.now() - answered) / 1000);
      $("state").textContent = "no answer";
      $("state").className = "state bad";
      // Not every two seconds: it is read out.
      $("trouble").textContent = "No answer since " + clock(answered) + ": " + (since < 10 ? "" : "what is shown is as it was then. ") + error.message;
    }
  }
  setTimeout(ask, EVERY);
}

$("filter").addEventListener("input", endings);
ask();
